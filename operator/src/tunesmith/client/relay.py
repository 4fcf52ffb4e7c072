"""The OpenAI API of a ModelDeployment on this machine, through the API server and with the user's own rights."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from tunesmith.kube.client import path_of
from tunesmith.kube.connection import ApiError, Connection

PORT_NAME = "http"
SECONDS = 600.0
PASSED = ("Content-Type", "Cache-Control")
# What leads nowhere but below it: no empty parts, none of dots, and nothing that is taken for a query.
PATH = re.compile(r"[\w:@-][\w.:@-]*(/[\w:@-][\w.:@-]*)*", re.ASCII)


def refusal(status: int, message: str) -> web.Response:
    """An error in the shape of OpenAI's API."""
    return web.json_response({"error": {"message": message, "code": status}}, status=status)


def refused(error: ApiError) -> web.Response:
    """What the deployment or the API server refused."""
    return refusal(error.status, error.message)


def asks_for_key(error: ApiError) -> bool:
    """Whether a deployment wants a key of its own. The API server, which has its reasons, does not pass keys on."""
    return error.status == 401 and error.reason != "Unauthorized"


async def forward(
    connection: Connection,
    request: web.Request,
    namespace: str,
    deployment: str,
    path: str,
    refused: Callable[[ApiError], web.Response] = refused,
) -> web.StreamResponse:
    """The answer of a deployment's API to a request, streamed."""
    if not PATH.fullmatch(path):
        return refusal(404, f"/v1/{path} is no path of the API")
    target = f"{path_of('Service', namespace, f'{deployment}:{PORT_NAME}')}/proxy/v1/{path}"
    body, response = await request.read(), None
    try:
        asked = json.loads(body) if body else None
    except (ValueError, RecursionError):
        return refusal(400, "the request is not JSON")
    try:
        answer = connection.request(request.method, target, asked, query=dict(request.query), seconds=SECONDS)
        async with answer as upstream:
            headers = {name: upstream.headers[name] for name in PASSED if name in upstream.headers}
            response = web.StreamResponse(status=upstream.status, headers=headers)
            await response.prepare(request)
            async for chunk in upstream.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response
    except ApiError as error:
        return refused(error)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        if response is None:
            return refusal(502, str(error))
        if request.transport is not None:  # cut short, and the client has to see that it is
            request.transport.abort()
        return response


@asynccontextmanager
async def relay(connection: Connection, namespace: str, deployment: str) -> AsyncIterator[str]:
    """The API's address, http://127.0.0.1:PORT/v1, while the block runs. It is bound to this machine, as that of
    `kubectl port-forward`; whoever can reach it can ask the models, and nothing else.
    """

    async def pass_on(request: web.Request) -> web.StreamResponse:
        return await forward(connection, request, namespace, deployment, request.match_info["rest"])

    app = web.Application()
    app.router.add_route("*", "/v1/{rest:.*}", pass_on)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/v1"
    finally:
        await runner.cleanup()
