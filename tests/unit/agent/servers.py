"""An HTTP server on loopback that answers what a test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class Handler(BaseHTTPRequestHandler):
    """Serves what the test says: `answer(handler)` returns whether it has answered."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.seen.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
        self.server.answer(self)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args: Any) -> None:
        pass

    def send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, cut: int = 0) -> None:
        """Answer, and break off `cut` bytes before the end."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) - cut])
        if cut:
            self.close_connection = True

    def file(self, body: bytes, cut: int = 0, **headers: str) -> None:
        """Answer with a file, or a part of it."""
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.send(416)
            else:
                self.send(206, body[start:], headers, cut)
        else:
            self.send(200, body, headers, cut)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    seen: list[tuple[str, dict[str, str]]]
    answer: Callable[[Handler], Any]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


@contextmanager
def s3_store(region: str) -> Iterator[tuple[str, Any]]:
    """(endpoint, boto3's client) of moto, which is S3 as botocore's tests know it. One store per process: a bucket that
    one test makes is there for the next.
    """
    moto, boto3 = pytest.importorskip("moto.server"), pytest.importorskip("boto3")
    one = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    one.start()
    endpoint = "http://{}:{}".format(*one.get_host_and_port())
    client = boto3.client(
        "s3", aws_access_key_id="me", aws_secret_access_key="hush", endpoint_url=endpoint, region_name=region
    )
    try:
        yield endpoint, client
    finally:
        client.close()
        one.stop()
