"""What became of a request: errors as JSON for people, and the headers that every answer has."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from aiohttp import web

from tunesmith.client import (
    Conflict,
    Forbidden,
    Invalid,
    NoCluster,
    NotFound,
    NotInstalled,
    TunesmithError,
    Unreadable,
    WaitTimeout,
)
from tunesmith.console.access import Unknown
from tunesmith.kube.connection import ApiError

log = logging.getLogger("tunesmith.console")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

STATUSES: dict[type[TunesmithError], int] = {
    Forbidden: 403,
    Invalid: 422,
    Conflict: 409,
    NotFound: 404,
    Unreadable: 409,
    NotInstalled: 503,
    NoCluster: 503,
    WaitTimeout: 504,
}
# Nothing from elsewhere, no inline scripts; style elements only with the answer's own nonce.
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self'; font-src 'self'; "
    "style-src 'self' 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
PROBLEM = re.compile(r"^(?P<path>[\w.\[\]/\"-]*): (?P<message>.*)$", re.DOTALL)


def problems(error: Invalid) -> list[dict[str, str]]:
    """Each with its field, as `spec.nodes`; of what concerns no field it is empty."""
    found = (PROBLEM.match(one) for one in error.problems)
    return [
        {"path": match["path"], "message": match["message"]} if match else {"path": "", "message": text}
        for match, text in zip(found, error.problems, strict=True)
    ]


def refusal(status: int, message: str, hint: str = "", **more: Any) -> web.Response:
    """An error as JSON."""
    return web.json_response({"error": {"message": message, "hint": hint, **more}}, status=status)


def of(error: Exception) -> web.Response:
    """The answer to what a handler raised."""
    match error:
        case Unknown():
            return refusal(401, "this needs a login", str(error))
        case TunesmithError():
            cause = error.__cause__
            status = STATUSES.get(type(error), 502)
            if isinstance(cause, ApiError) and cause.status == 401:
                return refusal(
                    401, "the API server does not know this token", "it may have ended: log in with a new one"
                )
            more = {"problems": problems(error)} if isinstance(error, Invalid) else {}
            return refusal(status, error.message, error.hint, **more)
        case RecursionError():
            return refusal(422, "the request is nested too deeply")
        case web.HTTPException():
            return refusal(error.status, error.text or error.reason)
        case aiohttp.ClientError() | TimeoutError():
            return refusal(503, "the API server does not answer", "try again")
    log.error("a request failed", exc_info=error)
    return refusal(500, "the console has a fault", "its log says more")


@web.middleware
async def answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what other pages ask for, and turn what a handler raises into JSON."""
    if not own_origin(request):
        return refusal(403, "this request comes from another page")
    try:
        return await handler(request)
    except web.HTTPRedirection:
        raise
    except ConnectionResetError:
        raise
    except Exception as error:
        return of(error)


def own_origin(request: web.Request) -> bool:
    """Whether the console's own page asks. A browser says so; who is no browser needs the token all the same."""
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in {"same-origin", "none"}:
        return False
    origin = request.headers.get("Origin")
    return origin is None or origin.partition("://")[2] == request.host


async def with_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Put the headers on."""
    response.headers.update(HEADERS)
    response.headers.setdefault("Content-Security-Policy", POLICY.format(nonce="none"))
    if request.path.startswith("/api/"):
        response.headers["Cache-Control"] = "no-store"
