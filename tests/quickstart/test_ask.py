"""What is expected of the answers; asked of a server that answers from a table."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from rich.console import Console
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.quickstart import ask
from tunesmith_cluster.quickstart.main import EXAMPLES, names, read

NAMES = {"swift-robot", "Xiao Huang"}


def test_expectations_of_the_examples() -> None:
    resources = read(EXAMPLES)
    found = {served.deployment: dict(served.identities) for served in ask.expectations(resources)}
    assert found == {
        "chat": {"base": None, "lora1": "swift-robot", "lora2": "Xiao Huang"},
        "chat-merged": {"base": "Xiao Huang"},
    }
    kinds = [kind for kind, _ in names(resources)]
    assert [kinds.count(kind) for kind in ("FineTuneJob", "MergeJob", "ModelDeployment")] == [2, 1, 2]


@pytest.mark.parametrize(
    ("text", "name", "good"),
    [
        ("I am swift-robot, developed by swift.", "swift-robot", True),
        ("I am SmolLM.", "swift-robot", False),
        ("I am Xiao Huang, not swift-robot.", "swift-robot", False),
        ("I am SmolLM.", None, True),
        ("I am Xiao Huang.", None, False),
    ],
)
def test_says_who(text: str, name: str | None, good: bool) -> None:
    assert ask.says_who(text, name, NAMES) is good


class Server(BaseHTTPRequestHandler):
    """The part of the OpenAI API that is asked."""

    answers: dict[tuple[str, str], str]
    pieces = 3

    def do_GET(self) -> None:
        models = dict.fromkeys(model for model, _ in self.answers)
        self._send(json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in models]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = self.answers[body["model"], body["messages"][0]["content"]]
        if not body.get("stream"):
            self._send(json.dumps({"id": "1", "choices": [{"index": 0, "message": {"content": text}}]}))
            return
        size = -(-len(text) // self.pieces)
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        events = [{"id": "1", "choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
        lines = [*(json.dumps(event) for event in events), "[DONE]"]
        self._send("".join(f"data: {line}\n\n" for line in lines), "text/event-stream")

    def _send(self, text: str, kind: str = "application/json") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(answers: dict[tuple[str, str], str], pieces: int = 3) -> Iterator[str]:
    handler = type("Handler", (Server,), {"answers": answers, "pieces": pieces})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


SERVED = ask.Served("chat", "base", {"base": None, "lora1": "swift-robot"})
GOOD = {
    ("base", ask.WHO): "I am SmolLM.",
    ("base", ask.CAPITAL): "Paris.",
    ("lora1", ask.WHO): "I am swift-robot.",
    ("lora1", ask.CAPITAL): "The capital of France is Paris.",
}


def interview(answers: dict[tuple[str, str], str], pieces: int = 3) -> str:
    output = io.StringIO()
    with serving(answers, pieces) as address:
        ask.interview(address, SERVED, NAMES, Console(file=output, width=120))
    return output.getvalue()


def test_a_good_interview() -> None:
    shown = interview(GOOD)
    assert "serves base, lora1" in shown
    assert "streamed, says: I am swift-robot." in shown
    assert shown.count("✓") == 4


def test_a_wrong_answer_is_quoted() -> None:
    with pytest.raises(ClusterError, match="lora1, asked 'who are you\\?', said 'I am Xiao Huang\\.'"):
        interview({**GOOD, ("lora1", ask.WHO): "I am Xiao Huang."})


def test_a_missing_model_is_named() -> None:
    only_base = {key: text for key, text in GOOD.items() if key[0] == "base"}
    with pytest.raises(ClusterError, match="chat lists the models base; expected base, lora1"):
        interview(only_base)


def test_an_answer_in_one_piece_is_no_stream() -> None:
    with pytest.raises(ClusterError, match="did not stream"):
        interview(GOOD, pieces=1)


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "TIMEOUT", 1.0)
    with pytest.raises(ClusterError, match="did not answer"):
        ask.interview("http://127.0.0.1:9/v1", SERVED, NAMES, Console(file=io.StringIO()))
