"""The console in the cluster: `python -m tunesmith.console`."""

from __future__ import annotations

import logging
import os
import sys

from aiohttp import web
from pydantic import ValidationError

from tunesmith import settings as operator
from tunesmith.console import settings
from tunesmith.console.access import OwnToken
from tunesmith.console.server import application


def main() -> int:
    """Serve until SIGTERM. Exit code 2 for bad settings, and where the pages are missing."""
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        own, shown = settings.load(os.environ), operator.load(os.environ)
    except ValidationError as error:
        for item in error.errors():
            print(f"{settings.PREFIX}{str(item['loc'][0]).upper()}: {item['msg']}", file=sys.stderr)
        return 2
    try:
        app = application(OwnToken(own.server, own.authority), own.pages, shown)
    except OSError as error:
        print(f"the console's pages are not built: {error}", file=sys.stderr)
        return 2
    # No access log: tokens are in headers, but addresses are nobody's business either.
    web.run_app(app, port=own.port, access_log=None, print=None, handler_cancellation=True, shutdown_timeout=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
