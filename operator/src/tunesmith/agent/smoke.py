"""The smoke request: what a version must answer before clients get its answers."""

from __future__ import annotations

import contextlib

from tunesmith.agent.engine import Engine, EngineError
from tunesmith.serving.contract import Smoke


class SmokeError(Exception):
    """The version answers, but not as it must."""

    permanent = True


def alias(name: str) -> str:
    """The name under which a version is tried. The guard keeps clients from it."""
    return f"@{name}"


async def smoke(engine: Engine, name: str, path: str, base: str, wanted: Smoke) -> None:
    """Ask a version. Raises SmokeError, and EngineError where it cannot be loaded or asked."""
    try:
        await engine.load(alias(name), path)
        answer = await engine.say(alias(name), wanted.prompt, wanted.max_tokens)
    finally:
        with contextlib.suppress(EngineError):  # what stays is unloaded in the next pass
            await engine.unload(alias(name))
    if wanted.contains is not None and wanted.contains not in answer:
        raise SmokeError(f"smoke request: {wanted.contains!r} is not in the answer {answer[:500]!r}")
    if wanted.differs and answer == await engine.say(base, wanted.prompt, wanted.max_tokens):
        raise SmokeError(
            f"smoke request: the answer {answer[:500]!r} is that of the base model: the adapter changes nothing "
            "(set smoke.differsFromBase to false where that may be)"
        )
