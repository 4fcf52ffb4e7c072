"""The engine's HTTP API, as the agent uses it, and what its answers mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

# What vLLM says, with status 500, of adapters that will not become better by trying again.
PERMANENT = (
    "is greater than max_lora_rank",
    "does not yet support",
    "does not support",
    "only supports modules_to_save",
    "is not supported",
    "deserializing header",
    "doesn't contain tensors",
    "must match",
    "expected target modules",
    "unsupported LoRA weight",
    "Missing required configuration",
    "must be consistent",
)
ALREADY = "has already been loaded"
PROBE = aiohttp.ClientTimeout(total=5)
# A load waits for the engine's current step, and reads a large adapter from disk.
CHANGE = aiohttp.ClientTimeout(total=300)


class EngineError(Exception):
    """The engine did not do as asked."""

    def __init__(self, message: str, *, permanent: bool) -> None:
        super().__init__(message)
        self.permanent = permanent
        """Whether it would refuse the same again."""


@dataclass(frozen=True)
class InFlight:
    """Requests of one model that are being answered."""

    count: int
    oldest: float
    """For how many seconds the oldest has been running."""


class Engine:
    """A vLLM server with the guard."""

    def __init__(self, session: aiohttp.ClientSession, url: str, token: Callable[[], str], api_key: str = "") -> None:
        self.session = session
        self.url = url
        self.token = token
        self.api_key = api_key

    async def healthy(self) -> bool | None:
        """Whether the engine is well. None: no answer in time, which a busy engine gives too."""
        try:
            async with self.session.get(f"{self.url}/health", timeout=PROBE) as response:
                return response.status == 200
        except TimeoutError:
            return None
        except (aiohttp.ClientError, OSError):
            return False

    async def adapters(self) -> dict[str, str]:
        """Name -> folder of each adapter that is loaded. Raises EngineError."""
        body = await self._call("GET", "/v1/models", limit=PROBE)
        try:
            cards = json.loads(body)["data"]
            return {card["id"]: card["root"] for card in cards if card.get("parent") is not None}
        except (ValueError, KeyError, TypeError):
            raise EngineError(f"GET /v1/models answered {body[:200]!r}", permanent=False) from None

    async def load(self, name: str, path: str) -> None:
        """Load an adapter. Raises EngineError. "Already loaded" is success only where it is this very folder."""
        try:
            await self._call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        except EngineError as error:
            if ALREADY not in str(error):
                raise
            if (root := (await self.adapters()).get(name)) != path:
                raise EngineError(f"the engine serves {root} under this name, not {path}", permanent=False) from None

    async def unload(self, name: str) -> None:
        """Forget an adapter. Requests that have begun end with it. Raises EngineError."""
        try:
            await self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        except EngineError as error:
            if "cannot be found" not in str(error):
                raise

    async def say(self, model: str, prompt: str, tokens: int) -> str:
        """The greedy answer of a model, past what holds its requests. Raises EngineError."""
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        answer = await self._call("POST", "/v1/completions", body)
        try:
            return str(json.loads(answer)["choices"][0]["text"])
        except (ValueError, KeyError, TypeError, IndexError):
            raise EngineError(f"POST /v1/completions answered {answer[:200]!r}", permanent=False) from None

    async def hold(self, model: str) -> None:
        """Let new requests for a model wait. Raises EngineError."""
        await self._call("POST", "/tunesmith/hold", {"model": model}, limit=PROBE)

    async def release(self, model: str) -> None:
        """Let them go on. Raises EngineError."""
        await self._call("POST", "/tunesmith/release", {"model": model}, limit=PROBE)

    async def in_flight(self) -> dict[str, InFlight] | None:
        """The requests in flight by model, or None where the guard does not say."""
        try:
            body = json.loads(await self._call("GET", "/tunesmith/in-flight", limit=PROBE))
            return {name: InFlight(int(m["count"]), float(m["oldest"])) for name, m in body["models"].items()}
        except (EngineError, ValueError, KeyError, TypeError, AttributeError):
            return None

    async def _call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        limit: aiohttp.ClientTimeout = CHANGE,
    ) -> str:
        headers = {"X-Tunesmith-Token": self.token()}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        try:
            async with self.session.request(
                method, self.url + path, json=body, headers=headers, timeout=limit
            ) as response:
                text = await response.text(errors="replace")
                if response.status != 200:
                    raise classify(response.status, text)
                return text
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            detail = str(error) or type(error).__name__
            raise EngineError(f"the engine did not answer {method} {path}: {detail}", permanent=False) from None


def message_of(text: str) -> str:
    """The message of an error's body: nested as in OpenAI's API, flat as in old versions, or plain."""
    try:
        body = json.loads(text)
    except ValueError:
        return text.strip()[:1000]
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:1000]


def classify(status: int, text: str) -> EngineError:
    """What an answer other than 200 means. vLLM says 500 both of bad adapters and of its own troubles."""
    message = message_of(text)
    if status == 404 and "No adapter found" in message:
        return EngineError(
            f"the engine does not see the adapter's files ({message}): the adapters' folder must be mounted into "
            "its container at the same path",
            permanent=False,
        )
    if status in (401, 403):
        return EngineError(f"the engine refuses the agent ({status}: {message})", permanent=False)
    permanent = status in (400, 422) or (status == 500 and any(text in message for text in PERMANENT))
    return EngineError(f"the engine answered {status}: {message}", permanent=permanent)
