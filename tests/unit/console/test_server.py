"""The HTTP, with the few answers of an API server that it needs: tests/console asks a real one, by a browser."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from tunesmith.api.base import URI_PATTERN
from tunesmith.client import AsyncClient, WaitTimeout
from tunesmith.console import data
from tunesmith.console import settings as console_settings
from tunesmith.console.access import OwnKubeconfig, OwnToken, Unknown
from tunesmith.console.answers import of
from tunesmith.console.server import application
from tunesmith.kube.connection import Connection
from tunesmith.settings import Settings

JOB = {
    "apiVersion": "tunesmith.io/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "x"},
    "spec": {
        "model": {"uri": "pvc://models/x"},
        "datasets": [{"uri": "pvc://data/rows.jsonl"}],
        "method": {"type": "SFT"},
    },
}
CAUSES = {
    2: ("spec", "Invalid value: elastic.minNodes must be at most nodes"),
    # Of a rule of the whole resource, as the API server has it.
    3: (
        "<nil>",
        "Invalid value: metadata.name must be a DNS label: lower-case letters, digits and '-', a letter first",
    ),
}
PLURALS = ("finetunejobs", "mergejobs", "inferencejobs", "modeldeployments")
SPACE = "/api/namespaces/team"


class Kubernetes:
    """Knows the token `user`, and `reader`, who may only read tunesmith's kinds. Says who asked for what."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []
        self.bodies: list[Any] = []
        self.config_maps: dict[str, Any] = {}
        live = {"uid": "u", "namespace": "team", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z"}
        managed = {"managedFields": [{"manager": "kubectl"}]}
        self.job: dict[str, Any] = {**JOB, "metadata": {**JOB["metadata"], **live, **managed}}  # type: ignore[dict-item]
        self.others: dict[str, dict[str, Any]] = {}
        """Jobs by name."""
        self.longest = 0
        """Resources in one answer."""
        self.leads = ""
        """Where a deployment's answer leads to. An API server passes that on."""

    def add(self, name: str, spec: Any) -> None:
        """A job whose spec is stored as it is."""
        self.others[name] = {**self.job, "metadata": {**self.job["metadata"], "name": name}, "spec": spec}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        self.asked.append((token, request.method, request.path_qs))
        if token not in {"user", "reader"}:
            return web.json_response(
                {"kind": "Status", "message": "Unauthorized", "reason": "Unauthorized"}, status=401
            )
        path, body = request.path, await request.read()
        if body:
            self.bodies.append(json.loads(body))
        if path.endswith("/selfsubjectreviews"):
            return web.json_response({"status": {"userInfo": {"username": token}}})
        if path.endswith("/proxy/v1/models") and self.leads:
            return web.Response(status=307, headers={"Location": self.leads})
        if path.endswith("/proxy/v1/completions"):
            response = web.StreamResponse(status=500)
            await response.prepare(request)
            while True:
                await response.write(b"x" * 100_000)
        if path.endswith("/proxy/v1/models"):  # as vLLM with --api-key, which no API server passes on
            return web.json_response({"error": "Unauthorized"}, status=401)
        if path.endswith("/proxy/v1/chat/completions"):
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Set-Cookie": "a=b"})
            await response.prepare(request)
            for word in ("one", "two"):
                await response.write(f'data: {{"choices": [{{"delta": {{"content": "{word}"}}}}]}}\n\n'.encode())
            return response
        kind, _, name = path.partition("/namespaces/team/")[2].partition("/")
        if token == "reader" and (request.method != "GET" or kind not in PLURALS):
            return web.json_response({"message": f"reader cannot {request.method} {kind}"}, status=403)
        if kind == "configmaps":
            wanted = name or self.bodies[-1]["metadata"]["name"]
            if request.method == "POST" and wanted in self.config_maps:
                return web.json_response(
                    {"message": "configmaps already exists", "reason": "AlreadyExists"}, status=409
                )
            return web.json_response(self.config_maps.get(wanted, self.bodies[-1]))
        if request.method == "PUT" and self.bodies[-1]["metadata"]["resourceVersion"] == "0":
            message = "the object has been modified; please apply your changes to the latest version and try again"
            return web.json_response({"message": message, "reason": "Conflict", "details": {"name": name}}, status=409)
        if request.method in {"POST", "PUT"}:
            if (nodes := self.bodies[-1]["spec"].get("nodes")) in CAUSES:
                cause = dict(zip(("field", "message"), CAUSES[nodes], strict=True))
                answer = {"message": "FineTuneJob is invalid", "reason": "Invalid", "details": {"causes": [cause]}}
                return web.json_response(answer, status=422)
            return web.json_response({**self.bodies[-1], "metadata": self.job["metadata"]})
        if not name:
            found = [self.job, *self.others.values()] if kind == "finetunejobs" else []
            begin, size = int(request.query.get("continue", 0)), int(request.query.get("limit", len(found)))
            self.longest = max(self.longest, len(found[begin : begin + size]))
            more = {"continue": str(begin + size)} if begin + size < len(found) else {}
            return web.json_response(
                {"items": found[begin : begin + size], "metadata": {"resourceVersion": "1", **more}}
            )
        if (kind, name) == ("finetunejobs", "x"):
            return web.json_response(self.job)
        if kind == "finetunejobs" and name in self.others:
            return web.json_response(self.others[name])
        if name.endswith("/log"):
            return web.Response(text="2026-01-01T00:00:00Z a line\n")
        return web.json_response({"message": "not found"}, status=404)


@pytest.fixture
def kubernetes() -> Kubernetes:
    return Kubernetes()


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "a.js").write_text("1")
    (tmp_path / "index.html").write_text('<meta name="style-nonce" content="NONCE-OF-THIS-ANSWER">')
    (tmp_path / "secret").write_text("no page")
    return tmp_path


@pytest.fixture
async def server(kubernetes: Kubernetes) -> AsyncIterator[str]:
    api = web.Application()
    api.router.add_route("*", "/{path:.*}", kubernetes.answer)
    async with TestServer(api) as running:
        yield str(running.make_url("")).rstrip("/")


@pytest.fixture
async def console(server: str, pages: Path) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    async with TestClient(TestServer(application(OwnToken(server, ""), pages, Settings()))) as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def error(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    found: dict[str, Any] = (await answer.json())["error"]
    return found


async def test_without_a_token_or_with_a_wrong_one_nothing_is_said(
    console: TestClient[web.Request, web.Application], kubernetes: Kubernetes
) -> None:
    for path in ("/api/session", "/api/namespaces", f"{SPACE}/resources", f"{SPACE}/finetunejobs/x"):
        answer = await console.get(path)
        assert answer.status == 401
        assert "kubectl create token" in (await error(answer))["hint"]
        answer = await console.get(path, headers=bearer("nonsense"))
        assert answer.status == 401, path
        assert "log in with a new one" in (await error(answer))["hint"]
    assert {token for token, *_ in kubernetes.asked} == {"nonsense"}


async def test_every_request_to_the_api_server_is_made_with_the_users_own_token(
    console: TestClient[web.Request, web.Application], kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for token in ("user", "reader"):
        kubernetes.asked.clear()
        session = await (await console.get("/api/session", headers=bearer(token))).json()
        assert session == {"user": token, "namespace": "default", "local": False}
        for path in ("resources", "finetunejobs/x"):
            assert (await console.get(f"{SPACE}/{path}", headers=bearer(token))).status == 200
        await console.post(f"{SPACE}/resources", json=JOB, headers=bearer(token))
        assert {seen for seen, *_ in kubernetes.asked} == {token}
        assert len(kubernetes.asked) >= 6


async def test_who_may_not_is_refused_by_the_api_server_and_told_so(
    console: TestClient[web.Request, web.Application],
) -> None:
    answer = await console.post(f"{SPACE}/resources", json=JOB, headers=bearer("reader"))
    assert answer.status == 403
    # Pods and events that the user may not read are left out; the rest is shown.
    found = await (await console.get(f"{SPACE}/finetunejobs/x", headers=bearer("reader"))).json()
    assert (found["pods"], found["events"]) == (None, None)
    assert found["summary"]["name"] == "x"
    assert "managedFields" not in found["resource"]["metadata"]


NEWER = {**JOB["spec"], "method": {"type": "Telepathy"}}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (NEWER, "spec.method.type: input should be "),
        ({**NEWER, "method": {"type": "SFT"}, "nodes": "many"}, "spec.nodes: input should be a valid integer"),
        ({}, "spec.model: required"),
        (None, "spec: input should be a valid dictionary"),
    ],
)
async def test_a_stored_resource_that_cannot_be_read_is_shown_with_why_and_harms_no_other(
    console: TestClient[web.Request, web.Application], kubernetes: Kubernetes, spec: Any, why: str
) -> None:
    kubernetes.add("odd", spec)
    answer = await console.get(f"{SPACE}/resources", headers=bearer("user"))
    assert answer.status == 200
    found = {one["name"]: one for one in await answer.json()}
    assert (found["x"]["state"], found["x"]["method"]) == ("waiting", "SFT")
    assert (found["odd"]["kind"], found["odd"]["reason"], found["odd"]["state"]) == (
        "FineTuneJob",
        "Unreadable",
        "unknown",
    )
    assert f"FineTuneJob odd is not as this version knows it: {why}" in found["odd"]["message"]
    page = await console.get(f"{SPACE}/finetunejobs/odd", headers=bearer("user"))
    assert page.status == 200
    shown = await page.json()
    assert shown["summary"] == found["odd"]
    assert shown["resource"]["spec"] == spec
    # Its logs can be read, and it can be deleted: that needs no more than its name.
    assert (await console.get(f"{SPACE}/finetunejobs/odd/logs", headers=bearer("user"))).status == 200
    assert (await console.delete(f"{SPACE}/finetunejobs/odd", headers=bearer("user"))).status == 200
    assert kubernetes.asked[-1][1:] == ("DELETE", "/apis/tunesmith.io/v1alpha1/namespaces/team/finetunejobs/odd")
    for method, part in (("GET", "metrics"), ("POST", "retry"), ("POST", "suspend")):
        answer = await console.request(method, f"{SPACE}/finetunejobs/odd/{part}", headers=bearer("user"))
        assert answer.status == 409, part
        assert why in (await error(answer))["message"]


async def test_many_resources_are_read_page_by_page(
    console: TestClient[web.Request, web.Application], kubernetes: Kubernetes
) -> None:
    """Each browser asks for them every two seconds, and a resource may have a megabyte."""
    for number in range(700):
        kubernetes.add(f"job-{number}", JOB["spec"])
    found = await (await console.get(f"{SPACE}/resources", headers=bearer("user"))).json()
    assert {one["name"] for one in found} == {"x", *kubernetes.others}
    assert len(found) == 701
    assert kubernetes.longest <= 250


async def test_a_field_of_a_newer_version_is_named_and_not_lost_by_a_retry(
    console: TestClient[web.Request, web.Application], kubernetes: Kubernetes
) -> None:
    kubernetes.add("newer", {**JOB["spec"], "telepathy": True})  # type: ignore[dict-item]
    ended = {"type": "Succeeded", "status": "True", "reason": "Completed", "message": ""}
    ended |= {"lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}
    kubernetes.others["newer"]["status"] = {"conditions": [ended]}
    found = await (await console.get(f"{SPACE}/finetunejobs/newer", headers=bearer("user"))).json()
    assert found["summary"]["reason"] == "Completed"
    assert [one.partition(";")[0] for one in found["unknown"]] == ["spec.telepathy: unknown field"]
    answer = await console.post(f"{SPACE}/finetunejobs/newer/retry", headers=bearer("user"))
    assert answer.status == 422
    assert [one["path"] for one in (await error(answer))["problems"]] == ["spec.telepathy"]
    assert {method for _, method, _ in kubernetes.asked} == {"GET"}


async def test_a_check_makes_nothing_and_names_fields(
    console: TestClient[web.Request, web.Application], kubernetes: Kubernetes
) -> None:
    async def check(**spec: Any) -> Any:
        body = {"resource": {**JOB, "spec": {**JOB["spec"], **spec}}}  # type: ignore[dict-item]
        answer = await console.post(f"{SPACE}/check", json=body, headers=bearer("user"))
        assert answer.status == 200
        return await answer.json()

    found = await check()
    assert found["problems"] == []
    assert [one["kind"] for one in found["objects"]][-1] == "Job"
    assert any("config.json" in note for note in found["notes"])
    assert [one["path"] for one in (await check(nodess=1))["problems"]] == ["spec.nodess"]
    rule = (await check(nodes=2))["problems"]
    assert len(rule) == 1
    assert "elastic.minNodes must be at most nodes" in rule[0]["message"]
    whole = (await check(nodes=3))["problems"]
    assert [one["message"].partition(" must")[0] for one in whole] == ["metadata.name"]
    writes = [path for _, method, path in kubernetes.asked if method != "GET"]
    assert writes
    assert all("dryRun=All" in path for path in writes)


async def test_who_may_not_make_a_job_is_told_what_its_method_lacks(
    console: TestClient[web.Request, web.Application],
) -> None:
    """The API server, whose rules would have found it, has only said no."""
    spec = {**JOB["spec"], "method": {"type": "GRPO"}}  # type: ignore[dict-item]
    answer = await console.post(f"{SPACE}/check", json={"resource": {**JOB, "spec": spec}}, headers=bearer("reader"))
    assert answer.status == 200
    assert [one["path"] for one in (await answer.json())["problems"]] == ["rewards"]


CONFIG = {
    "model_type": "qwen2_moe", "architectures": ["Qwen2MoeForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000, "num_experts": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    "odd",
    [
        {"num_hidden_layers": 10**12},
        {"num_hidden_layers": 9000, "mlp_only_layers": [-1] * 200_000},
        {"hidden_size": 10**300},
        {"vocab_size": float("inf")},
        {"vocab_size": -5},
        {"intermediate_size": float("nan")},
    ],
    ids=lambda odd: min(odd),
)
async def test_no_configuration_of_a_model_holds_the_console_up(
    console: TestClient[web.Request, web.Application], odd: dict[str, Any]
) -> None:
    """It is whatever somebody pasted, or what a hub has."""
    spec = {**JOB["spec"], "memory": {"perDevice": "24Gi"}}  # type: ignore[dict-item]
    body = {"resource": {**JOB, "spec": spec}, "config": {**CONFIG, **odd}}
    async with asyncio.timeout(10):
        answer = await console.post(f"{SPACE}/check", json=body, headers=bearer("user"))
        assert answer.status == 200, await answer.text()


async def test_no_address_is_followed_into_the_clusters_network(
    console: TestClient[web.Request, web.Application], kubernetes: Kubernetes, server: str
) -> None:
    inside = f"https://{server.partition('://')[2]}/model#sha256={'0' * 64}"
    for uri in (inside, "s3://bucket/model", "oci://127.0.0.1:1/model:1"):
        body = {"resource": {**JOB, "spec": {**JOB["spec"], "model": {"uri": uri}}}}  # type: ignore[dict-item]
        found = await (await console.post(f"{SPACE}/check", json=body, headers=bearer("user"))).json()
        assert any("is not read from here" in note for note in found.get("notes", [])), (uri, found)
    assert all("/model" not in path.partition("/namespaces/team/")[0] for *_, path in kubernetes.asked)


async def test_a_resource_of_another_namespace_or_name_is_not_made(
    console: TestClient[web.Request, web.Application], kubernetes: Kubernetes
) -> None:
    elsewhere = {**JOB, "metadata": {"name": "x", "namespace": "other"}}
    answer = await console.post(f"{SPACE}/resources", json=elsewhere, headers=bearer("user"))
    assert answer.status == 422
    assert [one["path"] for one in (await error(answer))["problems"]] == ["metadata.namespace"]
    answer = await console.put(f"{SPACE}/finetunejobs/y", json=JOB, headers=bearer("user"))
    assert answer.status == 422
    assert [method for _, method, _ in kubernetes.asked if method != "GET"] == []


async def test_a_change_keeps_what_others_wrote_and_names_its_version(
    console: TestClient[web.Request, web.Application], kubernetes: Kubernetes
) -> None:
    body = {**JOB, "metadata": {"name": "x", "resourceVersion": "5"}, "spec": {**JOB["spec"], "suspend": True}}  # type: ignore[dict-item]
    assert (await console.put(f"{SPACE}/finetunejobs/x", json=body, headers=bearer("user"))).status == 200
    sent = kubernetes.bodies[-1]
    assert sent["metadata"]["resourceVersion"] == "5"
    assert sent["metadata"]["uid"] == "u"
    assert sent["spec"]["suspend"] is True


async def test_a_change_of_what_has_changed_meanwhile_is_a_conflict_that_nothing_forces(
    console: TestClient[web.Request, web.Application],
) -> None:
    body = {**JOB, "metadata": {"name": "x", "resourceVersion": "0"}}
    answer = await console.put(f"{SPACE}/finetunejobs/x", json=body, headers=bearer("user"))
    assert answer.status == 409
    found = await error(answer)
    assert "the object has been modified" in found["message"]
    assert "--force" not in found["hint"]


def test_a_retry_that_waits_too_long_for_a_deletion_is_a_timeout() -> None:
    assert of(WaitTimeout("FineTuneJob x is still being deleted: its pods do not end")).status == 504


async def upload(
    console: TestClient[web.Request, web.Application], content: bytes, file: str = "train.jsonl", token: str = "user"
) -> aiohttp.ClientResponse:
    return await console.post(f"{SPACE}/data", params={"file": file}, data=content, headers=bearer(token))


async def test_a_file_of_rows_becomes_a_config_map_that_jobs_can_read(
    console: TestClient[web.Request, web.Application], kubernetes: Kubernetes
) -> None:
    rows = '{"query": "a?", "reply": "b — c"}\n\n{"query": "d?", "reply": "e"}\n'.encode()
    answer = await upload(console, rows, "My rows (2).jsonl")
    assert answer.status == 201
    found = await answer.json()
    assert (found["rows"], found["columns"]) == (2, ["query", "reply"])
    made = kubernetes.bodies[-1]
    [(key, text)] = made["data"].items()
    assert found["uri"] == f"configmap://{made['metadata']['name']}/{key}"
    assert re.fullmatch(URI_PATTERN, found["uri"])
    assert text.encode() == rows
    assert made["immutable"] is True
    assert (await (await upload(console, rows, "My rows (2).jsonl")).json())["uri"] == found["uri"]
    assert (await (await upload(console, rows + b"{}", "My rows (2).jsonl")).json())["uri"] != found["uri"]


@pytest.mark.parametrize(
    ("file", "content", "rows", "columns"),
    [
        ("a.csv", b'question,answer\n"a,b","two\nlines"\n', 1, ["question", "answer"]),
        ("a.csv", b"question\n" + b"x" * 200_000, 1, ["question"]),
        ("a.csv", b"question,answer\na,b,c\n", 1, ["question", "answer"]),
        ("a.tsv", b"\xef\xbb\xbfquestion\tanswer\na\tb\nc\td\n", 2, ["question", "answer"]),
        ("a.ndjson", b'\xef\xbb\xbf{"text": "a"}', 1, ["text"]),
        ("a.json", b'[{"text": "a"}]', None, []),
        ("a.parquet", b"PAR1\xff\x00PAR1", None, []),
        ("a.jsonl.gz", b"\x1f\x8b\x08\xff", None, []),
    ],
)
async def test_other_files_are_kept_as_they_are(
    console: TestClient[web.Request, web.Application],
    kubernetes: Kubernetes,
    file: str,
    content: bytes,
    rows: int | None,
    columns: list[str],
) -> None:
    found = await (await upload(console, content, file)).json()
    assert (found["rows"], found["columns"]) == (rows, columns)
    made = kubernetes.bodies[-1]
    kept = made["data"][file].encode() if "data" in made else base64.b64decode(made["binaryData"][file])
    assert kept == content


@pytest.mark.parametrize(
    ("file", "content", "part"),
    [
        (
            "a.jsonl",
            b'{"a": 1}\n{"a": 1',
            "a.jsonl, line 2: expected one row, a JSON object (column 8: Expecting",
        ),
        ("a.jsonl", b'{"a": "b', "line 1: expected one row, a JSON object (column 7: Unterminated string)"),
        ("a.jsonl", b'\n[{"a": 1}]', "a.jsonl, line 2: expected one row, a JSON object"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl, line 1: expected one row, a JSON object"),
        ("a.jsonl", b'{"a": 1}\n\xff', "a.jsonl, line 2: this is no UTF-8"),
        ("a.csv", b"a,b\n", "a.csv has no rows"),
        ("a.csv", b"a,b\n\xff,c\n", "a.csv, line 2: this is no UTF-8"),
        ("a.jsonl", b" \n", "a.jsonl is empty"),
        ("a.docx", b"rows", "a.docx: this is no file of rows"),
        ("", b"rows", "this is no file of rows"),
        (".jsonl", b"rows", "this is no file of rows"),
        ("a.json", b" " * 1_000_001, "a ConfigMap holds 1000000"),
    ],
)
async def test_a_file_that_no_job_could_read_is_refused_and_said_why(
    console: TestClient[web.Request, web.Application], kubernetes: Kubernetes, file: str, content: bytes, part: str
) -> None:
    answer = await upload(console, content, file)
    assert answer.status == 422
    found = await error(answer)
    assert part in found["message"]
    assert found["hint"]
    assert kubernetes.asked == []


async def test_an_upload_changes_nothing_that_is_there(
    console: TestClient[web.Request, web.Application], kubernetes: Kubernetes
) -> None:
    rows = b'{"text": "a"}\n'
    [name] = [(await (await upload(console, rows)).json())["uri"].split("/")[2]]
    kubernetes.config_maps[name] = kubernetes.bodies[-1]
    kubernetes.asked.clear()
    assert (await upload(console, rows)).status == 201
    kubernetes.config_maps[name] = {**kubernetes.bodies[-1], "data": {"train.jsonl": "of somebody else"}}
    answer = await upload(console, rows)
    assert answer.status == 409
    assert "with another content" in (await error(answer))["message"]
    assert {method for _, method, _ in kubernetes.asked} == {"GET", "POST"}


async def test_who_may_not_make_config_maps_uploads_nothing(
    console: TestClient[web.Request, web.Application], kubernetes: Kubernetes
) -> None:
    answer = await upload(console, b'{"text": "a"}\n', token="reader")
    assert answer.status == 403
    assert [token for token, *_ in kubernetes.asked] == ["reader"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "null"},
    ],
    ids=str,
)
async def test_other_pages_may_ask_nothing(
    console: TestClient[web.Request, web.Application], kubernetes: Kubernetes, headers: dict[str, str]
) -> None:
    answer = await console.post(f"{SPACE}/resources", json=JOB, headers={**bearer("user"), **headers})
    assert answer.status == 403
    assert kubernetes.asked == []


async def test_every_answer_has_the_headers_that_keep_a_browser_from_harm(
    console: TestClient[web.Request, web.Application],
) -> None:
    nonces = set()
    for path in ("/", "/", "/assets/a.js", "/api/session", "/api/none", "/none", "/healthz"):
        answer = await console.get(path)
        policy = dict(one.split(" ", 1) for one in answer.headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        if path == "/":
            nonce = policy["style-src"].partition("'nonce-")[2].rstrip("'")
            assert f'content="{nonce}"' in await answer.text()
            assert len(nonce) > 20
            nonces.add(nonce)
        if path.startswith("/api/"):
            assert answer.headers["Cache-Control"] == "no-store"
    assert len(nonces) == 2


@pytest.mark.parametrize("path", ["/assets/../secret", "/assets/%2e%2e/secret", "/secret", "/assets/"])
async def test_only_pages_are_served(console: TestClient[web.Request, web.Application], path: str) -> None:
    answer = await console.get(path, allow_redirects=False)
    assert answer.status in {403, 404}
    assert "no page" not in await answer.text()


async def test_a_models_answer_streams_through_without_its_cookies(
    console: TestClient[web.Request, web.Application], kubernetes: Kubernetes
) -> None:
    answer = await console.post(
        f"{SPACE}/modeldeployments/chat/v1/chat/completions", json={"model": "chat"}, headers=bearer("user")
    )
    assert answer.status == 200
    assert answer.content_type == "text/event-stream"
    assert "Set-Cookie" not in answer.headers
    assert (await answer.text()).count("data:") == 2
    token, method, path = kubernetes.asked[-1]
    assert (token, method) == ("user", "POST")
    assert path == "/api/v1/namespaces/team/services/chat:http/proxy/v1/chat/completions"


async def test_a_deployment_that_asks_for_a_key_logs_nobody_out(
    console: TestClient[web.Request, web.Application],
) -> None:
    path = f"{SPACE}/modeldeployments/chat/v1/models"
    answer = await console.get(path, headers=bearer("user"))
    assert answer.status == 502, "the page takes a 401 for the end of its own token"
    assert "asks for an API key" in (await error(answer))["message"]
    assert (await console.get(path, headers=bearer("nonsense"))).status == 401


async def test_an_error_without_end_is_not_read_to_its_end(console: TestClient[web.Request, web.Application]) -> None:
    async with asyncio.timeout(20):
        path = f"{SPACE}/modeldeployments/chat/v1/completions"
        answer = await console.post(path, json={}, headers=bearer("user"))
        assert answer.status == 500
        assert (await error(answer))["message"].startswith("xxx")


async def test_other_methods_are_refused(
    console: TestClient[web.Request, web.Application], kubernetes: Kubernetes
) -> None:
    for method in ("TRACE", "PROPFIND", "DELETE"):
        path = f"{SPACE}/modeldeployments/chat/v1/models"
        assert (await console.request(method, path, headers=bearer("user"))).status == 405, method
    assert kubernetes.asked == []


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_deployment_leads_the_console_nowhere(
    console: TestClient[web.Request, web.Application], kubernetes: Kubernetes, method: str
) -> None:
    """It reaches more than its users do."""
    reached: list[str] = []

    async def inside(request: web.Request) -> web.Response:
        reached.append(f"{request.method} {request.path}")
        return web.Response(text="credentials")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", inside)
    async with TestServer(app) as metadata:
        kubernetes.leads = str(metadata.make_url("/latest/meta-data"))
        path = f"{SPACE}/modeldeployments/chat/v1/models"
        answer = await console.request(method, path, headers=bearer("user"), allow_redirects=False)
    assert reached == []
    assert answer.status == 502
    assert "leads to another address" in (await error(answer))["message"]


@pytest.mark.parametrize(
    "path",
    [
        "modeldeployments/chat/v1/load_lora_adapter",
        "modeldeployments/chat/v1/../adapters",
        "modeldeployments/chat:9500%2F/v1/models",
        "finetunejobs/x/v1/models",
        "secrets/x",
        "modeldeployments/..%2F..%2Fsecrets/v1/models",
    ],
)
async def test_nothing_but_inference_and_the_kinds_is_reached(
    console: TestClient[web.Request, web.Application], kubernetes: Kubernetes, path: str
) -> None:
    assert (await console.get(f"{SPACE}/{path}", headers=bearer("user"))).status == 404
    assert kubernetes.asked == []


@pytest.mark.parametrize("body", [b"nonsense", b"\xff", b"[" * 100_000])
async def test_a_question_that_is_no_json_is_the_askers_mistake(
    console: TestClient[web.Request, web.Application], kubernetes: Kubernetes, body: bytes
) -> None:
    path = f"{SPACE}/modeldeployments/chat/v1/chat/completions"
    answer = await console.post(path, data=body, headers=bearer("user"))
    assert answer.status == 400
    assert (await error(answer))["message"] == "the request is not JSON"
    assert kubernetes.asked == []


async def test_a_retry_whose_browser_goes_away_makes_the_job_that_it_deleted(server: str, pages: Path) -> None:
    """A browser that is closed or loaded anew ends its requests."""
    begun, deleted, made = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def retry(_: AsyncClient, job: Any, name: str | None) -> None:
        begun.set()
        await deleted.wait()
        made.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AsyncClient, "retry", retry)
        app = application(OwnToken(server, ""), pages, Settings())
        async with TestServer(app, handler_cancellation=True) as running, aiohttp.ClientSession() as browser:
            url = running.make_url(f"{SPACE}/finetunejobs/x/retry")
            asking = asyncio.create_task(browser.post(url, headers=bearer("user")))
            await begun.wait()
            asking.cancel()
            await asyncio.sleep(0.1)
            deleted.set()
            await asyncio.wait_for(made.wait(), 5)


async def test_a_retry_under_way_is_finished_before_the_console_ends(server: str, pages: Path) -> None:
    """A rollout of the console ends it between the deletion of a job and its making."""
    begun, made = asyncio.Event(), asyncio.Event()

    async def retry(_: AsyncClient, job: Any, name: str | None) -> None:
        begun.set()
        await asyncio.sleep(0.5)
        made.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AsyncClient, "retry", retry)
        runner = web.AppRunner(application(OwnToken(server, ""), pages, Settings()), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession() as browser:
            url = f"http://127.0.0.1:{runner.addresses[0][1]}{SPACE}/finetunejobs/x/retry"
            asking = asyncio.create_task(browser.post(url, headers=bearer("user")))
            await begun.wait()
            await runner.cleanup()
            assert made.is_set()
            asking.cancel()


@pytest.mark.parametrize("body", [b"", b"[]", b"nonsense", b'{"resource": 1}', b"[" * 100_000])
async def test_no_body_is_a_fault_of_the_console(
    console: TestClient[web.Request, web.Application], body: bytes
) -> None:
    for path in ("check", "resources"):
        answer = await console.post(f"{SPACE}/{path}", data=body, headers=bearer("user"))
        assert answer.status == 422, (path, await answer.text())


@pytest.mark.parametrize("path", ["check", "resources"])
async def test_no_depth_of_a_body_is_a_fault_of_the_console(
    console: TestClient[web.Request, web.Application], path: str
) -> None:
    head, tail = json.dumps({**JOB, "spec": 0}).rsplit("0", 1)
    for depth in range(850, 1000, 5):
        resource = head + '{"a":' * depth + "1" + "}" * depth + tail
        body = f'{{"resource": {resource}}}' if path == "check" else resource
        answer = await console.post(f"{SPACE}/{path}", data=body.encode(), headers=bearer("user"))
        assert answer.status in {200, 422}, (depth, await answer.text())


async def test_a_body_of_unknown_fields_costs_little_to_refuse(
    console: TestClient[web.Request, web.Application],
) -> None:
    """One process answers everybody."""
    body = {**JOB, "spec": {**JOB["spec"], **{f"m{number}": 0 for number in range(80_000)}}}  # type: ignore[dict-item]
    answer = await console.post(f"{SPACE}/resources", json=body, headers=bearer("user"))
    assert answer.status == 422
    found = await error(answer)
    assert found["problems"][0]["path"] == "spec.m0"
    assert len(await answer.read()) < 100_000


def test_a_table_with_many_columns_and_rows_is_counted_without_keeping_them() -> None:
    header = ",".join(f"c{number}" for number in range(2000))
    tracemalloc.start()
    try:
        found = data.look("a.csv", f"{header}\n".encode() + b"a\n\n" * 2000)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (found.rows, len(found.columns)) == (2000, 2000)
    assert most < 20_000_000


async def test_on_the_users_machine_the_secret_of_the_address_is_asked_for(server: str, pages: Path) -> None:
    async with AsyncClient("team", connection=Connection.of_token(server, "", "user")) as client:
        access = OwnKubeconfig(client)
        async with TestClient(TestServer(application(access, pages, Settings()))) as console:
            for headers in ({}, bearer("user"), bearer(access.secret[:-1]), bearer("ä")):
                answer = await console.get("/api/session", headers=headers)
                assert answer.status == 401
                assert "tunesmith console" in (await error(answer))["hint"]
            with pytest.raises(Unknown):  # a header may be any bytes
                await access.client("\udce9").__aenter__()
            found = await (await console.get("/api/session", headers=bearer(access.secret))).json()
            assert found == {"user": "user", "namespace": "team", "local": True}


def test_the_process_names_the_setting_that_is_wrong() -> None:
    with pytest.raises(ValueError, match="server"):
        console_settings.load({})
    found = console_settings.load({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"})
    assert found.server == "https://[fd00::1]:6443"
