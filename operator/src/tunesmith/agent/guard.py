"""ASGI middleware for vLLM's server: the public port serves inference only.

The agent copies this one file into the engine's PYTHONPATH, so it needs nothing but the standard library and
runs in any vLLM image: `--middleware tunesmith_guard.Guard`.

- Paths that are not in ALLOWED do not exist here. vLLM's own API key leaves `/adapters`, `/invocations` and
  more open, so what is not listed is refused.
- Adapters are administered from the pod itself (loopback), with the admin token, and from nowhere else.
- Versions that the agent tries out (their names begin with @) are for the agent only.
- Where a folder of API keys is mounted, inference needs one of them. (vLLM's own key protects /v1 only.)
- Requests for an adapter that is being swapped wait for the new version instead of getting a 404.
- Requests in flight are counted by model, so that the agent deletes no file that the engine may still read.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_address
from itertools import count
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Inference, and what people and probes need around it. /tokenize and /detokenize are here because clients
# count tokens with them; they change nothing and tell nothing that the model's files do not tell.
# Not here, though inference: /invocations (takes any body without the API key), WebSockets and multipart
# uploads (the model that they use cannot be told beforehand).
INFERENCE = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/rerank",
        "/v1/responses",
        "/v1/score",
        "/classify",
        "/detokenize",
        "/tokenize",
    }
)
ALLOWED = {
    **dict.fromkeys(INFERENCE, ("POST", "OPTIONS")),
    **dict.fromkeys(("/v1/models", "/health", "/metrics", "/ping", "/version"), ("GET", "HEAD", "OPTIONS")),
}
# What API keys are for. Probes and Prometheus have none.
KEYED = INFERENCE | {"/v1/models"}
ENGINE_ADMIN = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
GUARD_ADMIN = frozenset({"/tunesmith/hold", "/tunesmith/release", "/tunesmith/in-flight"})

TOKEN_HEADER = b"x-tunesmith-token"
# uvicorn can be told to believe these, and then an outsider would look like loopback.
FORWARDED = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip"})

TOKEN_FILE = "/etc/tunesmith/admin/token"
MAX_HOLD = 30.0
# How old the API keys may be that a request is compared with.
KEYS_SECONDS = 2.0
# Longer bodies are refused: which model they are for would be known only when all of them is here.
MAX_BODY = 64 * 1024 * 1024
ANY = "*"
# Versions that the agent tries out are loaded under names that begin so.
TRIED = "@"


class Guard:
    """The middleware."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.token_file = os.environ.get("TUNESMITH_ADMIN_TOKEN_FILE", TOKEN_FILE)
        self.keys = Keys(os.environ.get("TUNESMITH_API_KEYS_FOLDER", ""))
        self.held: dict[str, tuple[asyncio.Event, float]] = {}
        self.swaps: dict[str, int] = {}
        self.in_flight: dict[int, tuple[str, float]] = {}
        self.ids = count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "not served here"})
        elif scope["type"] != "http":  # lifespan
            await self.app(scope, receive, send)
        else:
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = route(scope), scope["method"]
        if path in ENGINE_ADMIN or path in GUARD_ADMIN:
            if not self._admin(scope):
                await refuse(send, 403, "Adapters are administered from inside the pod, with the admin token.")
            elif path in ENGINE_ADMIN:
                await self.app(scope, receive, send)
            else:
                await self._administer(path, method, receive, send)
        elif path not in ALLOWED:
            await refuse(send, 404, f"{path} is not served here: this port serves inference only.")
        elif method not in ALLOWED[path]:
            await refuse(send, 405, f"{path} takes {ALLOWED[path][0]}, not {method}.")
        elif method == "OPTIONS" or path not in KEYED:
            await self.app(scope, receive, send)
        elif not (admin := self._admin(scope)) and not self.keys.admit(dict(scope["headers"])):
            await refuse(send, 401, "Send an API key: Authorization: Bearer <key>.")
        elif path in INFERENCE:
            await self._infer(scope, receive, send, admin=admin)
        else:
            await self.app(scope, receive, send)

    def _admin(self, scope: Scope) -> bool:
        """Whether the request comes from the pod itself and carries the admin token."""
        headers = dict(scope["headers"])
        if not loopback(scope.get("client")) or FORWARDED & headers.keys():
            return False
        try:
            with open(self.token_file, "rb") as file:  # read anew each time: it may be rotated
                token = file.read().strip()
        except OSError:
            return False
        return bool(token) and hmac.compare_digest(headers.get(TOKEN_HEADER, b""), token)

    async def _infer(self, scope: Scope, receive: Receive, send: Send, *, admin: bool) -> None:
        body, replay = await buffer(receive)
        if body is None:
            await refuse(send, 413, f"A request may have {MAX_BODY} bytes.")
            return
        model = model_of(body)
        if model.startswith(TRIED) and not admin:
            await refuse(send, 404, f"The model `{model}` does not exist.")
            return
        while True:
            if not admin:
                await self._wait(model)
            swaps = self.swaps.get(model, 0)
            missed = False

            async def forward(message: Message) -> None:
                # The adapter went away between our look and the engine's: the client shall not see that.
                nonlocal missed
                start = message["type"] == "http.response.start"
                if start and message["status"] == 404:
                    missed = self.swaps.get(model, 0) != swaps  # noqa: B023 (used within this turn only)
                if not missed:
                    await send(message)

            ticket = next(self.ids)
            self.in_flight[ticket] = (model, time.monotonic())
            try:
                await self.app({**scope}, replay(), forward)
            finally:
                del self.in_flight[ticket]
            if not missed:
                return

    async def _wait(self, model: str) -> None:
        """Wait while the model is held. Nobody is held for ever, whatever becomes of the agent."""
        while (hold := self.held.get(model)) is not None:
            event, until = hold
            try:
                await asyncio.wait_for(event.wait(), max(0.0, until - time.monotonic()))
            except asyncio.TimeoutError:  # noqa: UP041 (vLLM images may have Python 3.10)
                if self.held.get(model) == hold:
                    del self.held[model]

    async def _administer(self, path: str, method: str, receive: Receive, send: Send) -> None:
        if path == "/tunesmith/in-flight":
            await reply(send, 200, self._counts())
            return
        if method != "POST":
            await refuse(send, 405, f"{path} takes POST, not {method}.")
            return
        body, _ = await buffer(receive)
        try:
            asked = json.loads(body or b"")
            model, seconds = str(asked["model"]), float(asked.get("seconds", MAX_HOLD))
        except (ValueError, TypeError, KeyError, AttributeError):
            await refuse(send, 400, 'Send {"model": "<name>", "seconds": 30}.')
            return
        old = self.held.pop(model, None)
        if path == "/tunesmith/hold":
            event = old[0] if old else asyncio.Event()
            self.held[model] = (event, time.monotonic() + min(max(seconds, 0.0), MAX_HOLD))
            self.swaps[model] = self.swaps.get(model, 0) + 1
        elif old:
            old[0].set()
        await reply(send, 200, {"held": sorted(self.held)})

    def _counts(self) -> dict[str, Any]:
        """Requests in flight by model: how many, and for how many seconds the oldest has been running."""
        now = time.monotonic()
        models: dict[str, dict[str, float]] = {}
        for model, start in self.in_flight.values():
            entry = models.setdefault(model, {"count": 0, "oldest": 0.0})
            entry["count"] += 1
            entry["oldest"] = max(entry["oldest"], now - start)
        return {"models": models}


class Keys:
    """The API keys of clients: the content of each file of a folder. No folder: everybody is let in; a folder that
    cannot be read, or is empty: nobody.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.known: list[bytes] = []
        self.until = 0.0

    def admit(self, headers: dict[bytes, bytes]) -> bool:
        """Whether a request has one of the keys."""
        if not self.folder:
            return True
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        key = given.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        # All of them are compared, so that the time tells nothing.
        return bool(key) and sum(hmac.compare_digest(key, one) for one in self._read()) > 0

    def _read(self) -> list[bytes]:
        if time.monotonic() >= self.until:
            try:
                names = [name for name in os.listdir(self.folder) if not name.startswith(".")]
                self.known = [key for name in names if (key := self._key(name))]
            except OSError:
                self.known = []
            self.until = time.monotonic() + KEYS_SECONDS
        return self.known

    def _key(self, name: str) -> bytes:
        try:
            with open(os.path.join(self.folder, name), "rb") as file:
                return file.read().strip()
        except FileNotFoundError:  # a key that is being removed takes no other with it
            return b""


def route(scope: Scope) -> str:
    """The path as the server's router will see it."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(root + "/") else path


def loopback(client: Any) -> bool:
    """Whether the peer is this pod."""
    try:
        address = ip_address(client[0])
    except (TypeError, IndexError, ValueError):
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def model_of(body: bytes) -> str:
    """The model that a request names. What the engine will refuse or understand otherwise is ANY."""
    try:
        model = json.loads(body).get("model")
    except (ValueError, RecursionError, AttributeError):
        return ANY
    return (model or "") if model is None or isinstance(model, str) else ANY


async def buffer(receive: Receive) -> tuple[bytes | None, Callable[[], Receive]]:
    """Read a request's body, and make receivers that play it again. None for the body where it is too long."""
    messages: list[Message] = []
    size, more = 0, True
    while more and size <= MAX_BODY:
        message = await receive()
        messages.append(message)
        size += len(message.get("body", b""))
        more = message["type"] == "http.request" and message.get("more_body", False)

    def replay() -> Receive:
        pending = iter(messages)

        async def again() -> Message:
            return next(pending, None) or await receive()

        return again

    return None if size > MAX_BODY else b"".join(m.get("body", b"") for m in messages), replay


async def reply(send: Send, status: int, body: dict[str, Any]) -> None:
    """Answer with JSON."""
    data = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


async def refuse(send: Send, status: int, message: str) -> None:
    """Answer with an error in the shape of OpenAI's API."""
    kinds = {
        400: "BadRequestError",
        401: "AuthenticationError",
        403: "PermissionDeniedError",
        404: "NotFoundError",
        405: "MethodNotAllowed",
        413: "BadRequestError",
    }
    error = {"message": message, "type": kinds[status], "param": None, "code": status}
    await reply(send, status, {"error": error})
