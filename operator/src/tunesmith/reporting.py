"""`GET :9400/progress`: how a pod tells the operator how far it is. With the standard library only."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from tunesmith.training.report import Report

POLL_SECONDS = 0.05
"""How long closing the server may take."""


class ReportServer(ThreadingHTTPServer):
    """Serves the Report as JSON from a thread, on IPv4 and IPv6. `report` is asked at each request."""

    daemon_threads = True
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def __init__(self, port: int, report: Callable[[], Report]) -> None:
        self.report = report
        super().__init__(("", port), _Handler)
        Thread(target=self.serve_forever, args=(POLL_SECONDS,), name="progress", daemon=True).start()

    def server_bind(self) -> None:
        """Bind for both families."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def page(self, path: str) -> tuple[str, bytes] | None:
        """(content type, body) of a path; None: there is no such page."""
        if path == "/progress":
            return "application/json", self.report().model_dump_json(by_alias=True).encode()
        return None

    def close(self) -> None:
        """Stop serving."""
        self.shutdown()
        self.server_close()


@contextmanager
def served(
    port: int, report: Callable[[], Report], kind: type[ReportServer] = ReportServer, alone: bool = True
) -> Iterator[None]:
    """Serve for a while. Where the port is taken nothing is served, and that is said, unless another process of the pod
    may be the one that serves (not `alone`).
    """
    try:
        server = kind(port, report)
    except OSError as error:
        if alone:
            print(f"progress is not served: port {port}: {error.strerror}", flush=True)
        yield
        return
    try:
        yield
    finally:
        server.close()


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer

    def do_GET(self) -> None:
        page = self.server.page(self.path.split("?")[0])
        if page is None:
            self.send_error(404)
            return
        kind, body = page
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of requests."""
