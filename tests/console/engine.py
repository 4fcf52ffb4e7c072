"""Answers chat completions word by word, as an engine does. It runs in a pod."""

import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Engine(BaseHTTPRequestHandler):
    """`/v1/chat/completions`, streamed."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        words = [f"{asked['model']} says:", *map(str, range(1, 41)), f"you asked: {asked['messages'][-1]['content']}"]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for word in words:
            event = json.dumps({"choices": [{"index": 0, "delta": {"content": f"{word} "}}]})
            self.chunk(f"data: {event}\n\n")
            time.sleep(0.1)
        self.chunk("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


ThreadingHTTPServer(("", 8000), Engine).serve_forever()
