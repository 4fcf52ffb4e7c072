"""The port for clients. It serves what the guard of the engines serves, and nothing else.

Answers are passed on as they come. A request is sent to another pod only where it cannot have been begun: the
connection was not made, or the engine said that it does not know the version that is being tried. So each request has
a connection of its own: one that was kept may be closed while a request is on its way.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from io import BytesIO

import aiohttp
from aiohttp import hdrs, web
from multidict import CIMultiDict, CIMultiDictProxy

from tunesmith.addresses import host_port
from tunesmith.agent.guard import INFERENCE, TOKEN_HEADER, Keys, model_of
from tunesmith.gateway.metrics import Metrics
from tunesmith.gateway.pods import Pod, Pods
from tunesmith.gateway.table import Table
from tunesmith.serving.routes import CANARY

CONNECT_SECONDS = 5.0
RETRY_AFTER = "5"
# Kept until the answer has begun, since a request may be sent again: less than an engine takes.
MAX_BODY = 16 * 1024 * 1024
# Of all requests that wait, their bodies together.
MAX_HELD_BYTES = 256 * 1024 * 1024
# https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1, and what is each connection's own.
HOP = {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding"}
HOP |= {"upgrade", "host", "content-length", "expect", TOKEN_HEADER.decode()}
# Of a request: aiohttp has unpacked its body.
UNPACKED = {"content-encoding"}
# A line that begins an event of vLLM's that says that an answer ends with an error.
BROKEN = b'\ndata: {"error"'


class Unavailable(Exception):
    """No pod for a request: too many wait, or none came in time."""


@dataclass
class Request:
    """One request for an answer, and what became of it."""

    path: str
    body: bytes
    headers: CIMultiDict[str]
    model: str
    """As the client named it."""
    served: str
    """As the engine knows it."""
    trial: str | None
    began: float = field(default_factory=time.monotonic)

    @property
    def tried(self) -> bool:
        """Whether it goes to the version that is being tried."""
        return self.served != self.model

    @property
    def version(self) -> str:
        """For metrics."""
        return "canary" if self.tried else "stable"

    def go_back(self) -> None:
        """Ask the version that is not on trial: the request says nothing of the one that is."""
        self.served, self.trial = self.model, None

    def sent(self) -> bytes:
        """The body for the engine."""
        return json.dumps({**json.loads(self.body), "model": self.served}).encode() if self.tried else self.body


class Proxy:
    """Passes requests on."""

    def __init__(
        self, http: aiohttp.ClientSession, pods: Pods, table: Table, metrics: Metrics, keys: Keys, port: int
    ) -> None:
        self.http, self.pods, self.table, self.metrics, self.keys, self.port = http, pods, table, metrics, keys, port
        self.held = self.held_bytes = self.in_flight = 0
        self.last = time.monotonic()

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._errors])
        for path in sorted(INFERENCE):
            app.router.add_post(path, self.infer)
            app.router.add_options(path, self.options)
        app.router.add_get("/v1/models", self.models)
        for path in ("/health", "/ping"):
            app.router.add_get(path, self.health)
        return app

    async def health(self, _: web.Request) -> web.Response:
        """The gateway serves, also while no engine does."""
        return web.Response()

    async def models(self, request: web.Request) -> web.Response:
        """The model and its adapters, in the shape of OpenAI's API. Engines are not asked: they may be away."""
        if not self._admitted(request):
            return unauthorized()
        routes = self.table.routes
        names = [routes.model_name, *routes.adapters] if routes else []
        cards = [
            {"id": n, "object": "model", "created": 0, "owned_by": "tunesmith", "parent": names[0] if i else None}
            for i, n in enumerate(names)
        ]
        return web.json_response({"object": "list", "data": cards})

    async def options(self, _: web.Request) -> web.Response:
        """What may be sent."""
        return web.Response(headers={hdrs.ALLOW: "OPTIONS, POST"})

    async def infer(self, request: web.Request) -> web.StreamResponse:
        """One request for an answer."""
        if not self._admitted(request):
            return unauthorized()
        body = await request.read()
        model = model_of(body)
        if model.endswith(CANARY) or model.startswith("@"):
            return refusal(404, f"The model `{model}` does not exist.")
        served, trial = self.table.choose(model)
        if served != model and not self.pods.serving(served):
            served, trial = model, None
        asked = Request(request.path, body, passed_on(request.headers, UNPACKED), model, served, trial)
        self.in_flight += 1
        self.metrics.in_flight.set(self.in_flight)
        try:
            return await self._answer(request, asked)
        finally:
            self.in_flight -= 1
            self.metrics.in_flight.set(self.in_flight)
            self.last = time.monotonic()

    async def _answer(self, request: web.Request, asked: Request) -> web.StreamResponse:
        try:
            pod, answer = await self._begin(asked)
        except Unavailable as error:
            self.metrics.refused.inc()
            return refusal(503, str(error))
        except (aiohttp.ClientError, TimeoutError) as error:
            # The engine may have begun it, so it is not sent again.
            self._over(asked, 0)
            return refusal(502, f"The engine ended the connection before its answer: {type(error).__name__}.")
        try:
            return await self._relay(request, asked, answer)
        finally:
            answer.close()
            pod.in_flight -= 1

    async def _begin(self, asked: Request) -> tuple[Pod, aiohttp.ClientResponse]:
        """Send a request to a pod, for which it waits where there is none, and read the head of the answer."""
        deadline = asked.began + (self.table.routes.hold_seconds if self.table.routes else 0)
        while True:
            pod = self.pods.of(asked.served, self.table.names)
            if pod is None and asked.tried:
                asked.go_back()
                continue
            pod = pod or await self._held(asked, deadline)
            pod.in_flight += 1
            kept = False
            try:
                url = f"http://{host_port(pod.address, self.port)}{asked.path}"
                answer = await self.http.post(
                    url, data=BytesIO(asked.sent()), headers=asked.headers, allow_redirects=False
                )
                if kept := not (answer.status == 404 and asked.tried):
                    return pod, answer
                answer.close()
                asked.go_back()
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
                pod.avoid()
            finally:
                pod.in_flight -= not kept

    async def _held(self, asked: Request, deadline: float) -> Pod:
        """Wait for a pod."""
        limit = self.table.routes.max_held if self.table.routes else 0
        size = len(asked.body)
        if self.held >= limit or self.held_bytes + size > MAX_HELD_BYTES:
            raise Unavailable("No pod serves this model now, and no more requests may wait for one.")
        self._hold(1, size)
        try:
            while (left := deadline - time.monotonic()) > 0:
                await self.pods.turn(min(left, 1.0))
                if pod := self.pods.of(asked.served, self.table.names):
                    return pod
        finally:
            self._hold(-1, -size)
        raise Unavailable("No pod came to serve this model in time.")

    def _hold(self, number: int, size: int) -> None:
        self.held += number
        self.held_bytes += size
        self.metrics.held.set(self.held)

    async def _relay(self, request: web.Request, asked: Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers=passed_on(answer.headers))
        if answer.content_length is not None:
            response.content_length = answer.content_length
        await response.prepare(request)
        self.metrics.first_byte_seconds.labels(asked.version).observe(time.monotonic() - asked.began)
        code, end = answer.status, b"\n"
        while True:
            try:
                chunk = await answer.content.readany()
            except (aiohttp.ClientError, OSError):
                # Cut short, and the client has to see that it is.
                self._over(asked, 0)
                if request.transport is not None:
                    request.transport.abort()
                return response
            if not chunk:
                break
            end += chunk  # an event may begin anywhere in a chunk, and in the one before
            code = 500 if BROKEN in end else code
            end = end[1 - len(BROKEN) :]
            await response.write(chunk)
        await response.write_eof()
        self._over(asked, code)
        return response

    def _over(self, asked: Request, code: int) -> None:
        self.table.count(asked.trial, asked.tried, code == 0 or code >= 500)
        routes = self.table.routes
        known = routes is not None and asked.model in {routes.model_name, *routes.adapters}
        self.metrics.requests.labels(asked.model if known else "", asked.version, str(code)).inc()

    def _admitted(self, request: web.Request) -> bool:
        return self.keys.admit({name.lower(): value for name, value in request.raw_headers})

    @web.middleware
    async def _errors(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Errors of aiohttp's own, in the shape of OpenAI's API."""
        try:
            return await handler(request)
        except web.HTTPRequestEntityTooLarge:
            return refusal(413, f"A request may have {MAX_BODY} bytes.")
        except web.RequestPayloadError as error:
            return refusal(400, f"The body cannot be read: {error}.")
        except web.HTTPMethodNotAllowed as error:
            return refusal(405, f"{request.path} takes {', '.join(sorted(error.allowed_methods))}.")
        except web.HTTPNotFound:
            return refusal(404, f"{request.path} is not served here: this port serves inference only.")


def passed_on(headers: CIMultiDictProxy[str], without: Collection[str] = ()) -> CIMultiDict[str]:
    """The headers that are not the connection's own, of which it may name more."""
    named = {name.strip().lower() for line in headers.getall(hdrs.CONNECTION, []) for name in line.split(",")}
    left = HOP.union(named, without)
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in left)


def unauthorized() -> web.Response:
    """No key, or none that is known."""
    return refusal(401, "Send an API key: Authorization: Bearer <key>.")


KINDS = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "MethodNotAllowed",
    413: "BadRequestError",
}


def refusal(status: int, message: str) -> web.Response:
    """An error in the shape of OpenAI's API."""
    kind = KINDS.get(status, "ServiceUnavailableError" if status == 503 else "InternalServerError")
    headers = {hdrs.RETRY_AFTER: RETRY_AFTER} if status == 503 else None
    error = {"message": message, "type": kind, "param": None, "code": status}
    return web.json_response({"error": error}, status=status, headers=headers)


def session() -> aiohttp.ClientSession:
    """For requests to engines: no connection is used twice, nothing is unpacked, and answers may take their time."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        # What a client did not ask for is not asked for.
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
    )
