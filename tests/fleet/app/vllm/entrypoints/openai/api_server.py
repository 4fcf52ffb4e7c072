"""Where a pod runs `python3 -m vllm.entrypoints.openai.api_server`: many of these fit on one machine.

It takes vLLM's arguments, loads the guard as its middleware, administers adapters with vLLM's answers, and says tokens
that tell which adapter, in which version, said them. One whose config has the `revision` "fails" is loaded, and answers
nothing but errors. It ends on SIGTERM as vLLM does with --shutdown-timeout.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib
import json
import os
import signal
import struct
import time
from pathlib import Path

from aiohttp import web

TOKEN_SECONDS = 0.02
START_SECONDS = float(os.environ.get("SMALL_ENGINE_START_SECONDS", "0.5"))


def header_of(path: Path) -> dict:
    """The header of a safetensors file, whole."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    end = max((t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"), default=0)
    if len(data) != 8 + length + end:
        raise ValueError("Error while deserializing header: incomplete metadata, file not fully covered")
    return header


def version_of(folder: str) -> str:
    """Six hex digits that tell the weights."""
    return hashlib.sha256(Path(folder, "adapter_model.safetensors").read_bytes()).hexdigest()[:6]


class Refused(Exception):
    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


class Engine:
    """An ASGI application."""

    def __init__(self, base: str, model: str, max_rank: int) -> None:
        self.base, self.model, self.max_rank = base, model, max_rank
        self.adapters: dict[str, tuple[str, str]] = {}
        self.failing: set[str] = set()
        self.running = 0
        self.ending = False

    async def __call__(self, scope, receive, send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        try:
            await self.route(scope["path"], body, send)
        except Refused as error:
            await answer(send, error.status, json.dumps(error.body).encode())

    async def route(self, path: str, body: bytes, send) -> None:
        match path:
            case "/health" | "/ping":
                await answer(send, 200, b"")
            case "/v1/models":
                await answer(send, 200, json.dumps({"object": "list", "data": self.cards()}).encode())
            case "/v1/load_lora_adapter":
                await answer(send, 200, self.load(json.loads(body)).encode(), b"text/plain")
            case "/v1/unload_lora_adapter":
                name = json.loads(body)["lora_name"]
                if self.adapters.pop(name, None) is None:
                    raise Refused(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
                await answer(send, 200, f"Success: LoRA adapter '{name}' removed successfully.".encode(), b"text/plain")
            case "/v1/completions":
                await self.complete(json.loads(body), send)
            case "/metrics":
                await answer(send, 200, self.metrics().encode(), b"text/plain")
            case _:
                raise Refused(404, "NotFoundError", "Not Found")

    def metrics(self) -> str:
        labels = f'{{model_name="{self.model}"}}'
        return (
            f"vllm:num_requests_running{labels} {float(self.running)}\n"
            f"vllm:num_requests_waiting{labels} {float(max(0, self.running - 4))}\n"
            f"vllm:kv_cache_usage_perc{labels} {min(1.0, self.running / 8)}\n"
        )

    def cards(self) -> list[dict]:
        one = {"object": "model", "created": int(time.time()), "owned_by": "vllm"}
        base = {**one, "id": self.model, "root": self.base, "parent": None, "max_model_len": 512}
        return [base, *({**one, "id": n, "root": p, "parent": self.model} for n, (p, _) in self.adapters.items())]

    def load(self, asked: dict) -> str:
        name, path = asked["lora_name"], asked["lora_path"]
        if name == self.model:
            raise Refused(400, "InvalidUserInput", f"The lora adapter '{name}' conflicts with a served base model.")
        if name in self.adapters:
            message = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, "
            raise Refused(400, "InvalidUserInput", message + "set 'load_inplace' to True.")
        if not Path(path, "adapter_config.json").is_file():
            raise Refused(404, "NotFoundError", f"Loading lora {name} failed: No adapter found for {path}")
        config = json.loads(Path(path, "adapter_config.json").read_text())
        rank = config["r"]
        if rank > self.max_rank:
            message = f"LoRA rank {rank} is greater than max_lora_rank {self.max_rank}."
            raise Refused(500, "InternalServerError", message)
        try:
            header_of(Path(path, "adapter_model.safetensors"))
        except FileNotFoundError:
            raise Refused(500, "InternalServerError", f"{path} doesn't contain tensors") from None
        except ValueError as error:
            raise Refused(500, "InternalServerError", str(error)) from None
        self.adapters[name] = (path, version_of(path))
        self.failing.discard(name)
        if config.get("revision") == "fails":
            self.failing.add(name)
        return f"Success: LoRA adapter '{name}' added successfully."

    async def complete(self, asked: dict, send) -> None:
        if self.ending:
            raise Refused(500, "InternalServerError", "EngineCore encountered an issue.")
        name = asked["model"]
        if name != self.model and name not in self.adapters:
            raise Refused(
                404, "NotFoundError", f"The model `{name}` does not exist. Valid aliases: {self.model}.", "model"
            )
        version = "base" if name == self.model else self.adapters[name][1]
        if name in self.failing:
            raise Refused(500, "InternalServerError", "EngineCore encountered an issue.")
        self.running += 1
        try:
            tokens = [f" {version}" for _ in range(asked.get("max_tokens", 16))]
            if not asked.get("stream"):
                await asyncio.sleep(TOKEN_SECONDS * len(tokens))
                text = {"object": "text_completion", "model": name, "choices": [{"index": 0, "text": "".join(tokens)}]}
                await answer(send, 200, json.dumps(text).encode())
                return
            head = [(b"content-type", b"text/event-stream; charset=utf-8")]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            for token in tokens:
                chunk = {"object": "text_completion", "model": name, "choices": [{"index": 0, "text": token}]}
                data = f"data: {json.dumps(chunk)}\n\n".encode()
                await send({"type": "http.response.body", "body": data, "more_body": True})
                await asyncio.sleep(TOKEN_SECONDS)
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
        finally:
            self.running -= 1


async def answer(send, status: int, body: bytes, kind: bytes = b"application/json") -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def bridged(app) -> web.Application:
    """An ASGI application on aiohttp's server."""

    async def handle(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        client = request.transport.get_extra_info("peername") if request.transport else None
        headers = [(name.lower(), value) for name, value in request.raw_headers]
        scope = {"type": "http", "method": request.method, "path": request.path, "headers": headers, "client": client}
        response = web.StreamResponse()

        async def receive() -> dict:
            return messages.pop() if messages else {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            if message["type"] == "http.response.start":
                response.set_status(message["status"])
                for name, value in message["headers"]:
                    response.headers[name.decode()] = value.decode()
                await response.prepare(request)
            else:
                await response.write(message.get("body", b""))

        await app(scope, receive, send)
        await response.write_eof()
        return response

    result = web.Application(client_max_size=64 * 1024 * 1024)
    result.router.add_route("*", "/{path:.*}", handle)
    return result


async def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--model", "--served-model-name", "--middleware"):
        parser.add_argument(name)
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int)
    parser.add_argument("--max-lora-rank", type=int, default=16)
    parser.add_argument("--shutdown-timeout", type=float, default=0)
    options, _ = parser.parse_known_args()
    module, _, name = options.middleware.rpartition(".")
    engine = Engine(options.model, options.served_model_name, options.max_lora_rank)
    app = getattr(importlib.import_module(module), name)(engine)
    await asyncio.sleep(START_SECONDS)
    runner = web.AppRunner(bridged(app), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, options.host, options.port).start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    engine.ending = True
    end = time.monotonic() + options.shutdown_timeout
    while engine.running and time.monotonic() < end:  # noqa: ASYNC110 (a counter, not an event)
        await asyncio.sleep(0.05)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
