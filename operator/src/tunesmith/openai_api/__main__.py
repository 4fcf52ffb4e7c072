"""OpenAI's fine-tuning API: `python -m tunesmith.openai_api`."""

from __future__ import annotations

import logging
import os
import sys

from aiohttp import web
from pydantic import ValidationError

from tunesmith.client.errors import Invalid
from tunesmith.openai_api import catalog, settings
from tunesmith.openai_api.files import Files
from tunesmith.openai_api.server import Server


def main() -> int:
    """Serve until SIGTERM. Exit code 2 for bad settings and a bad table of models."""
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        own = settings.load(os.environ)
    except ValidationError as error:
        for item in error.errors():
            print(f"{settings.PREFIX}{str(item['loc'][0]).upper()}: {item['msg']}", file=sys.stderr)
        return 2
    try:
        models = catalog.load(own.models)
    except (OSError, ValueError, Invalid) as error:
        print(f"{own.models}: {error}", file=sys.stderr)
        return 2
    web.run_app(Server(own, models, Files(own.folder)).application(), port=own.port, access_log=None, print=None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
