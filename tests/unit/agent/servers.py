"""An HTTP server on loopback that answers what a test says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class Handler(BaseHTTPRequestHandler):
    """Serves what the test says: `answer(handler)` returns whether it has answered."""

    protocol_version = "HTTP/1.1"
    server: Server
    body = b""

    def do_GET(self) -> None:
        self.server.seen.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
        self.server.answer(self)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.do_GET()

    do_PUT = do_POST  # noqa: N815
    do_DELETE = do_POST  # noqa: N815

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
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            if int(first) >= len(body):
                self.send(416)
            else:
                self.send(206, body[int(first) : int(last) + 1 if last else None], headers, cut)
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
def serving() -> Iterator[Server]:
    """A server that runs."""
    with Server(("127.0.0.1", 0), Handler) as one:
        one.seen = []
        thread = threading.Thread(target=one.serve_forever, args=(0.02,))
        thread.start()
        yield one
        one.shutdown()
        thread.join()


@contextmanager
def s3_store(region: str, host: str = "127.0.0.1") -> Iterator[tuple[str, Any]]:
    """(endpoint, boto3's client) of moto, which is S3 as botocore's tests know it. One store per process: a bucket that
    one test makes is there for the next. With host 0.0.0.0 it answers from everywhere.
    """
    moto, boto3 = pytest.importorskip("moto.server"), pytest.importorskip("boto3")
    one = moto.ThreadedMotoServer(host, 0, verbose=False)
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
