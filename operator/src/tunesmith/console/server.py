"""The application: the pages, and what they ask for."""

from __future__ import annotations

import secrets
from pathlib import Path

from aiohttp import web

from tunesmith.console.access import Access
from tunesmith.console.answers import POLICY, answered, with_headers
from tunesmith.console.api import Api
from tunesmith.settings import Settings

BODY_BYTES = 2**20
NONCE = "NONCE-OF-THIS-ANSWER"
"""Where index.html wants the nonce of its style elements, which the component library makes."""
FOR_EVER = "public, max-age=31536000, immutable"


class Pages:
    """The built pages: index.html, and assets whose names hold their digest."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError where they are not built."""
        self.folder = folder
        self._index = (folder / "index.html").read_text(encoding="utf-8")

    async def index(self, _: web.Request) -> web.Response:
        """The one page; which view it shows is in the address's fragment."""
        nonce = secrets.token_urlsafe(16)
        headers = {"Content-Security-Policy": POLICY.format(nonce=nonce), "Cache-Control": "no-store"}
        return web.Response(text=self._index.replace(NONCE, nonce), content_type="text/html", headers=headers)

    async def icon(self, _: web.Request) -> web.FileResponse:
        """The icon."""
        return web.FileResponse(self.folder / "icon.svg")


async def healthz(_: web.Request) -> web.Response:
    """That it answers."""
    return web.Response(text="ok\n")


async def kept(request: web.Request, response: web.StreamResponse) -> None:
    """Assets never change under their name."""
    if request.path.startswith("/assets/") and response.status == 200:
        response.headers["Cache-Control"] = FOR_EVER


def application(access: Access, pages: Path, settings: Settings) -> web.Application:
    """The application. Raises OSError where the pages are not built."""
    own = Pages(pages)
    app = web.Application(middlewares=[answered], client_max_size=BODY_BYTES)
    app.add_routes([web.get("/", own.index), web.get("/icon.svg", own.icon), web.get("/healthz", healthz)])
    api = Api(access, settings)
    app.add_routes(api.routes())
    app.on_cleanup.append(api.finish)
    app.router.add_static("/assets", pages / "assets")
    app.on_response_prepare.append(with_headers)
    app.on_response_prepare.append(kept)
    return app
