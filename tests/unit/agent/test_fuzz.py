"""What strangers send to the ports of a serving pod, at random."""

from __future__ import annotations

import asyncio
import json
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tunesmith.agent import guard
from tunesmith.agent.guard import Guard
from unit.agent.test_guard import TOKEN, Client, Engine

PARTS = st.sampled_from(
    ["v1", "load_lora_adapter", "chat/completions", "tunesmith", "hold", "..", ".", "", "%2e%2e", ";", "V1", "\\", "é"]
)
PATHS = st.lists(PARTS | st.text(max_size=4), max_size=5).map(lambda parts: "/" + "/".join(parts))
LISTED = st.sampled_from(sorted(guard.ALLOWED | dict.fromkeys(guard.ENGINE_ADMIN | guard.GUARD_ADMIN, ())))
METHODS = st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "x"])
ADDRESSES = st.ip_addresses().filter(lambda a: not (getattr(a, "ipv4_mapped", None) or a).is_loopback).map(str)
CLIENTS = st.none() | st.just(()) | st.tuples(ADDRESSES | st.text(max_size=8), st.integers(0, 65535))
HEADERS = st.dictionaries(
    st.sampled_from(["x-tunesmith-token", "x-forwarded-for", "forwarded", "authorization", "x-real-ip"]),
    st.sampled_from([TOKEN, "127.0.0.1", "for=127.0.0.1", "Bearer x", ""]),
)
BODIES = st.binary(max_size=40) | st.builds(
    lambda value: json.dumps({"model": value}).encode(), st.none() | st.text() | st.integers() | st.lists(st.none())
)


@pytest.fixture(autouse=True)
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    monkeypatch.setenv("TUNESMITH_ADMIN_TOKEN_FILE", str(file))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(path=PATHS | LISTED, method=METHODS, client=CLIENTS, headers=HEADERS, body=BODIES)
def test_a_stranger_reaches_nothing_but_inference(
    path: str, method: str, client: Any, headers: dict[str, str], body: bytes
) -> None:
    """Whatever is sent from outside the pod, with the right token even: the engine sees listed paths only."""
    if client and client[0] in {"127.0.0.1", "::1"}:
        return
    engine = Engine()
    status, _ = asyncio.run(Client(Guard(engine))(method, path, body, headers, client))
    assert 200 <= status < 500
    for asked, _ in engine.asked:
        assert asked in guard.ALLOWED
        assert method in guard.ALLOWED[asked]


@given(st.ip_addresses().map(str) | st.text())
def test_only_the_pod_itself_is_loopback(address: str) -> None:
    try:
        expected = ip_address(address)
    except ValueError:
        assert not guard.loopback((address, 1))
        return
    mapped = getattr(expected, "ipv4_mapped", None)
    assert guard.loopback((address, 1)) == (mapped or expected).is_loopback


@given(st.binary())
def test_every_body_names_a_model_or_any(body: bytes) -> None:
    assert isinstance(guard.model_of(body), str)
