"""The engine's public port, attacked: what serves, what does not exist, what needs the token."""

from __future__ import annotations

import json
import socket
import threading
import time
from urllib.parse import urlsplit

import openai
import pytest
from serving.conftest import until

KEY = "a-client's-key"
pytestmark = pytest.mark.trainer

# vLLM's routes, of all its tasks and modes, that are not on the guard's list.
CLOSED = [
    ("POST", "/adapters"),
    ("DELETE", "/adapters/first"),
    ("POST", "/invocations"),
    ("POST", "/inference/v1/generate"),
    ("POST", "/pooling"),
    ("POST", "/score"),
    ("POST", "/rerank"),
    ("GET", "/load"),
    ("GET", "/server_info"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/tokenizer_info"),
    ("GET", "/kv_event_sources"),
    ("POST", "/collective_rpc"),
    ("POST", "/sleep"),
    ("POST", "/wake_up"),
    ("POST", "/pause"),
    ("POST", "/resume"),
    ("POST", "/abort_requests"),
    ("POST", "/update_weights"),
    ("POST", "/start_weight_update"),
    ("POST", "/reset_prefix_cache"),
    ("POST", "/start_profile"),
    ("POST", "/stop_profile"),
    ("POST", "/scale_elastic_ep"),
    ("POST", "/fault_tolerance/apply"),
    ("POST", "/generative_scoring"),
    ("POST", "/v1/chat/completions/render"),
    ("POST", "/v1/chat/completions/batch"),
    ("GET", "/v1/responses/resp_1"),
    ("POST", "/v1/audio/transcriptions"),
    ("GET", "/"),
    ("POST", "/ping"),
]
# Other ways to write the paths of administration.
SPELLINGS = [
    "/v1/load_lora_adapter/",
    "//v1/load_lora_adapter",
    "/v1//load_lora_adapter",
    "/v1/%6coad_lora_adapter",
    "/V1/LOAD_LORA_ADAPTER",
    "/v1/./load_lora_adapter",
    "/health/../v1/load_lora_adapter",
    "/v1/load_lora_adapter?x=/health",
    "/v1/load_lora_adapter;x",
    "/v1/load_lora_adapter%00",
    "/tunesmith/hold",
    "/tunesmith/release",
]


@pytest.fixture(autouse=True)
def nothing_changes(pod):
    """Whatever a test tries, the engine serves the same afterwards."""
    before = pod.models()
    assert before
    yield
    assert pod.models() == before


def raw(pod, method: str, path: str, body: bytes = b"", headers: str = "", key: str = KEY) -> int:
    """The status of a request whose path no client library has tidied up."""
    parts = urlsplit(pod.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        head += f"Authorization: Bearer {key}\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n{headers}\r\n".encode() + body)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize(("method", "path"), CLOSED, ids=lambda value: value)
def test_what_is_not_inference_does_not_exist(pod, call, method, path):
    for headers in ({}, {"X-Tunesmith-Token": pod.token}):
        answer = call(method, pod.url + path, {"name": "x", "src": "/tmp", "model": "base"}, headers)
        assert answer.status in (404, 405), answer
        assert answer.json["error"]["code"] == answer.status


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"])
def test_adapters_are_administered_with_the_token_only(pod, path):
    body = {"lora_name": "first", "lora_path": "/tmp"}
    assert pod.admin(path, body).status == 403
    for token in ("", "guess", pod.token[:-1], pod.token + "x", pod.token.upper() + "X"):
        assert pod.admin(path, body, **{"X-Tunesmith-Token": token}).status == 403
    assert pod.admin(path, body, Authorization=f"Bearer {pod.token}").status == 403
    for header in ("X-Forwarded-For", "Forwarded", "X-Real-IP"):
        headers = {"X-Tunesmith-Token": pod.token, header: "127.0.0.1"}
        assert pod.admin(path, body, **headers).status == 403, "who came through a proxy is not the agent"


@pytest.mark.parametrize("path", SPELLINGS)
def test_no_spelling_of_a_path_gets_past_the_guard(pod, path):
    body = json.dumps({"lora_name": "x", "lora_path": "/tmp", "model": "first"}).encode()
    assert raw(pod, "POST", path, body) in (400, 403, 404)
    assert raw(pod, "POST", f"http://x{path}", body) in (400, 403, 404)


def test_websockets_are_refused(pod):
    upgrade = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    for path in ("/v1/realtime", "/v1/load_lora_adapter"):
        assert raw(pod, "GET", path, headers=upgrade) in (403, 404)


def test_probes_and_metrics_are_open(pod, call):
    for path in ("/health", "/ping", "/version", "/metrics", "/v1/models"):
        assert call("GET", pod.url + path).status == 200, path


@pytest.mark.parametrize("key", ["", "guess", KEY[:-1], KEY.upper()])
def test_without_a_key_nothing_is_inferred_or_told(pod, call, key):
    headers = {"Authorization": f"Bearer {key}"}
    body = {"model": "base", "prompt": "x", "messages": [], "input": "x"}
    for path in (
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/embeddings",
        "/tokenize",
        "/v1/messages",
        "/v1/score",
        "/classify",
    ):
        assert call("POST", pod.url + path, body, headers).status == 401, path
    assert call("GET", f"{pod.url}/v1/models", None, headers).status == 401
    with pytest.raises(openai.AuthenticationError), openai.OpenAI(base_url=f"{pod.url}/v1", api_key=key or "x") as one:
        one.models.list()


def test_clients_keys_change_without_a_restart(pod, call):
    file = pod.root / "keys" / "another"
    headers = {"Authorization": "Bearer another-key"}
    assert call("GET", f"{pod.url}/v1/models", None, headers).status == 401
    file.write_text("another-key")
    until(lambda: call("GET", f"{pod.url}/v1/models", None, headers).status == 200)
    file.unlink()
    until(lambda: call("GET", f"{pod.url}/v1/models", None, headers).status == 401)


def test_a_new_admin_token_counts_at_once_and_the_old_one_no_more(pod):
    old, new = pod.token, "n" * 32
    state = {**pod.state(), "revision": pod.revision}
    (pod.root / "token").write_text(new)
    try:
        assert pod.admin("/tunesmith/release", {"model": "x"}, **{"X-Tunesmith-Token": old}).status == 403
        assert pod.admin("/tunesmith/release", {"model": "x"}, **{"X-Tunesmith-Token": new}).status == 200
        assert pod.put(state, token=old).status == 401
        assert pod.put(state, token=new).status == 200
    finally:
        (pod.root / "token").write_text(old)


def test_openai_clients_are_served(pod):
    client = openai.OpenAI(base_url=f"{pod.url}/v1", api_key=KEY, max_retries=0)
    messages = [{"role": "user", "content": "who are you?"}]
    whole = client.chat.completions.create(model="first", messages=messages, max_tokens=8, temperature=0)
    parts = client.chat.completions.create(model="first", messages=messages, max_tokens=8, temperature=0, stream=True)
    assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) == whole.choices[0].message.content
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="nobody", messages=messages)
    client.close()


def test_the_engine_judges_bad_and_large_bodies_itself(pod):
    assert raw(pod, "POST", "/v1/completions", b"{no json") in (400, 422)
    assert raw(pod, "POST", "/v1/completions", b"[1]") in (400, 422)
    assert pod.complete("first", prompt="x" * 5_000_000).status == 400
    assert pod.complete("first", prompt="x" * 20_000_000).status == 400
    assert pod.complete("first").status == 200


def test_a_held_model_waits_and_others_do_not(pod):
    token = {"X-Tunesmith-Token": pod.token}
    assert pod.admin("/tunesmith/hold", {"model": "first", "seconds": 30}, **token).status == 200
    ended: list[float] = []
    thread = threading.Thread(target=lambda: (pod.say("first"), ended.append(time.monotonic())))
    thread.start()
    time.sleep(1)
    assert pod.complete("base").status == 200
    assert not ended
    released = time.monotonic()
    assert pod.admin("/tunesmith/release", {"model": "first"}, **token).status == 200
    thread.join()
    assert 0 < ended[0] - released < 15, "the hold would have ended by itself"


def test_a_hold_that_nobody_releases_ends(pod):
    token = {"X-Tunesmith-Token": pod.token}
    assert pod.admin("/tunesmith/hold", {"model": "first", "seconds": 1}, **token).status == 200
    start = time.monotonic()
    pod.say("first")
    assert time.monotonic() - start > 0.5


def test_requests_in_flight_are_counted_by_model(pod, call):
    def count() -> dict[str, dict[str, float]]:
        return call("GET", f"{pod.url}/tunesmith/in-flight", None, {"X-Tunesmith-Token": pod.token}).json["models"]

    assert count() == {}
    stream = pod.stream("first", tokens=200)
    assert count()["first"]["count"] == 1
    stream.close()  # a client that goes away
    until(lambda: not count())
