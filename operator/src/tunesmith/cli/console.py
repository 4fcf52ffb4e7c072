"""`console`: the web console on this machine."""

from __future__ import annotations

import asyncio
import os
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.session import Session, command
from tunesmith.client import Invalid, TunesmithError

PAGES = "TUNESMITH_CONSOLE_PAGES"


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, rich_help_panel="Look")(console)


def console(
    session: Session,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; 0: any that is free.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open it in the browser.")] = True,
) -> None:
    """Open the web console, on this machine and with your own kubeconfig and rights, until Ctrl-C.

    Its address holds a secret: whoever has it acts as you.
    """
    asyncio.run(_serve(session, port, browser))


async def _serve(session: Session, port: int, browser: bool) -> None:
    from aiohttp import web

    from tunesmith.client import AsyncClient
    from tunesmith.console import settings
    from tunesmith.console.access import OwnKubeconfig
    from tunesmith.console.server import application
    from tunesmith.settings import Settings

    pages = Path(os.environ.get(PAGES) or settings.PAGES)
    async with AsyncClient(session.namespace, context=session.context, kubeconfig=session.kubeconfig) as client:
        access = OwnKubeconfig(client)
        try:
            app = application(access, pages, Settings())
        except OSError as error:
            hint = f"in a checkout, `make console` builds them and says what to set {PAGES} to"
            raise Invalid(f"the console's pages are not in {pages}", hint) from error
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        try:
            try:
                await web.TCPSite(runner, "127.0.0.1", port).start()
            except OSError as error:
                raise TunesmithError(f"--port {port}: {error.strerror}", "leave it out: any free port does") from error
            # In the fragment, which browsers send to nobody.
            url = f"http://127.0.0.1:{runner.addresses[0][1]}/#token={access.secret}"
            session.answer({"url": url}, url)
            session.say("Ctrl-C ends it")
            if browser:
                await asyncio.to_thread(webbrowser.open, url)
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()
