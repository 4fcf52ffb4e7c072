"""The HTTP, by the official client, with the few answers of an API server that it needs:
tests/integration/test_openai_api.py asks a real one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tunesmith.openai_api.catalog import Base, Catalog
from tunesmith.openai_api.files import Files
from tunesmith.openai_api.server import Server
from tunesmith.openai_api.settings import Settings

CHAT = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "ä"}]}).encode()
PREFERENCE = json.dumps(
    {
        "input": {"messages": [{"role": "user", "content": "q"}]},
        "preferred_output": [{"role": "assistant", "content": "good"}],
        "non_preferred_output": [{"role": "assistant", "content": "bad"}],
    }
).encode()
TABLE = {"small": Base(uri="hf://org/small")}


async def review(request: web.Request) -> web.Response:
    token = request.headers["Authorization"].removeprefix("Bearer ")
    if token == "stranger":
        return web.json_response({"message": "Unauthorized"}, status=401)
    wanted = (await request.json())["spec"]["resourceAttributes"]
    assert wanted == {"namespace": "team", "group": "tunesmith.io", "resource": "finetunejobs", "verb": "create"}
    return web.json_response({"status": {"allowed": token == "trainer"}})


class Jobs:
    """FineTuneJobs, as the API server would keep them."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, Any]] = {}
        self.meanwhile = 0
        """How many of the next changes come after one of the operator's."""

    async def create(self, request: web.Request) -> web.Response:
        body = await request.json()
        stamp = f"2026-01-01T00:00:0{len(self.kept)}Z"
        body["metadata"] |= {"uid": "u", "namespace": "team", "resourceVersion": "1", "creationTimestamp": stamp}
        self.kept[body["metadata"]["name"]] = body
        return web.json_response(body)

    async def list(self, request: web.Request) -> web.Response:
        assert request.query["labelSelector"] == "tunesmith.io/openai-api=true"
        return web.json_response({"items": list(self.kept.values())})

    async def get(self, request: web.Request) -> web.Response:
        found = self.kept.get(request.match_info["name"])
        return web.json_response(found or {"message": "not found"}, status=200 if found else 404)

    async def patch(self, request: web.Request) -> web.Response:
        change, body = await request.json(), self.kept[request.match_info["name"]]
        if self.meanwhile:
            self.meanwhile -= 1
            body["metadata"]["resourceVersion"] += "1"
        if change["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
            return web.json_response({"message": "the object has been modified"}, status=409)
        body["metadata"]["annotations"] |= change["metadata"].get("annotations", {})
        body["spec"] |= change["spec"]
        return web.json_response(body)


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


@pytest.fixture
async def address(tmp_path: Path, jobs: Jobs) -> AsyncIterator[str]:
    api = web.Application()
    api.router.add_post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
    path = "/apis/tunesmith.io/v1alpha1/namespaces/team/finetunejobs"
    api.add_routes([web.get(path, jobs.list), web.post(path, jobs.create)])
    api.add_routes([web.get(path + "/{name}", jobs.get), web.patch(path + "/{name}", jobs.patch)])
    async with TestServer(api) as kubernetes:
        settings = Settings(namespace="team", server=str(kubernetes.make_url("")).rstrip("/"), max_file_mib=1)
        own = Server(settings.model_copy(update={"authority": ""}), Catalog(TABLE), Files(tmp_path / "openai"))
        async with TestServer(own.application()) as server:
            yield str(server.make_url("/v1"))


@pytest.fixture
async def client(address: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=address, api_key="trainer", max_retries=0) as client:
        yield client


async def test_a_file_is_kept_listed_read_and_deleted(client: openai.AsyncOpenAI, tmp_path: Path) -> None:
    made = await client.files.create(file=("rows.jsonl", CHAT), purpose="fine-tune")
    assert (made.filename, made.bytes, made.status) == ("rows.jsonl", len(CHAT), "processed")
    same = await client.files.create(file=("again.jsonl", CHAT), purpose="fine-tune")
    assert {one.id async for one in await client.files.list(limit=1)} == {made.id, same.id}
    assert [one async for one in await client.files.list(purpose="batch")] == []
    assert (await client.files.retrieve(made.id)).filename == "rows.jsonl"
    assert (await client.files.content(made.id)).content == CHAT
    assert (await client.files.delete(made.id)).deleted
    # The other upload of the same content still has it.
    assert (await client.files.content(same.id)).content == CHAT
    await client.files.delete(same.id)
    with pytest.raises(openai.NotFoundError, match="No such File object"):
        await client.files.retrieve(same.id)
    assert [path.name for path in (tmp_path / "openai").rglob("*") if path.is_file()] == []


def test_what_a_killed_process_was_writing_is_gone_after_its_next_start(tmp_path: Path) -> None:
    folder = tmp_path / "openai"
    with Files(folder).upload() as file:
        file.write(b"half")
        shutil.copy(file.name, folder / ".upload-left")
    assert [path.name for path in folder.iterdir() if path.is_file()] == [".upload-left"]
    Files(folder)
    assert [path.name for path in folder.iterdir() if path.is_file()] == []


async def test_what_jobs_read_of_a_preference_file_is_in_the_trainers_form(
    client: openai.AsyncOpenAI, tmp_path: Path
) -> None:
    made = await client.files.create(file=("pairs.jsonl", PREFERENCE), purpose="fine-tune")
    record = Files(tmp_path / "openai").get(made.id)
    row = json.loads((tmp_path / "openai" / record.data).read_text())
    assert [row[side][-1]["content"] for side in ("chosen", "rejected")] == ["good", "bad"]
    assert (await client.files.content(made.id)).content == PREFERENCE
    await client.files.delete(made.id)
    assert not (tmp_path / "openai" / record.data).exists()


async def test_a_bad_file_is_refused_and_leaves_nothing(client: openai.AsyncOpenAI, tmp_path: Path) -> None:
    with pytest.raises(openai.BadRequestError, match="Line 2 is not a dictionary") as caught:
        await client.files.create(file=("rows.jsonl", CHAT + b"\nnonsense"), purpose="fine-tune")
    assert (caught.value.type, caught.value.param, caught.value.code) == (
        "invalid_request_error", "file", "invalid_file",
    )  # fmt: skip
    with pytest.raises(openai.BadRequestError, match="Files here are for 'fine-tune'"):
        await client.files.create(file=("rows.jsonl", CHAT), purpose="batch")
    with pytest.raises(openai.APIStatusError, match="larger than 1 MiB") as large:
        await client.files.create(file=("rows.jsonl", b"x" * (2**20 + 1)), purpose="fine-tune")
    assert large.value.status_code == 413
    assert [path for path in (tmp_path / "openai").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("token", "error"), [("stranger", openai.AuthenticationError), ("reader", openai.PermissionDeniedError)]
)
async def test_files_are_for_who_may_make_jobs(
    client: openai.AsyncOpenAI, token: str, error: type[openai.APIStatusError]
) -> None:
    made = await client.files.create(file=("rows.jsonl", CHAT), purpose="fine-tune")
    other = client.with_options(api_key=token)
    for attempt in (
        lambda: other.files.retrieve(made.id),
        lambda: other.files.content(made.id),
        lambda: other.files.delete(made.id),
        lambda: other.files.create(file=("x", CHAT), purpose="fine-tune"),
        lambda: other.fine_tuning.jobs.create(model="x", training_file=made.id),
    ):
        with pytest.raises(error):
            await attempt()
    assert (await client.files.retrieve(made.id)).id == made.id


@pytest.mark.parametrize("path", ["files/file-..%2F..%2Fx", "files/file-a%2Fb/content", "fine_tuning/jobs/a%2Fb"])
async def test_no_path_leaves_the_folder(address: str, path: str) -> None:
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer trainer"}) as http:
        from yarl import URL

        async with http.get(URL(f"{address}/{path}", encoded=True)) as answer:
            assert answer.status == 404
            assert "No such" in (await answer.json())["error"]["message"]


async def test_everything_else_is_an_error_in_openais_shape(address: str) -> None:
    async with aiohttp.ClientSession() as http:
        for method, path, status in (("GET", "nowhere", 404), ("PUT", "files", 405), ("GET", "files", 401)):
            async with http.request(method, f"{address}/{path}") as answer:
                assert answer.status == status
                assert (await answer.json())["error"].keys() == {"message", "type", "param", "code"}


async def test_a_jobs_life(client: openai.AsyncOpenAI, jobs: Jobs, tmp_path: Path) -> None:
    rows = await client.files.create(file=("rows.jsonl", CHAT), purpose="fine-tune")
    api = client.fine_tuning.jobs
    one = await api.create(model="small", training_file=rows.id, suffix="One", metadata={"n": "1"})
    two = await api.create(model="small", training_file=rows.id, seed=3, metadata={"n": "2"})
    assert one.id.endswith("-one")
    assert two.seed == 3
    [dataset] = jobs.kept[one.id]["spec"]["datasets"]
    assert (tmp_path / "openai" / dataset["uri"].removeprefix("pvc://tunesmith-store/openai/")).read_bytes() == CHAT
    assert [job.id async for job in await api.list(limit=1)] == [two.id, one.id]
    assert [job.id async for job in await api.list(metadata={"n": "1"})] == [one.id]
    await api.pause(one.id)
    assert jobs.kept[one.id]["spec"]["suspend"] is True
    await api.resume(one.id)
    assert jobs.kept[one.id]["spec"]["suspend"] is False
    with pytest.raises(openai.ConflictError, match=f"is used by {two.id}|is used by {one.id}"):
        await client.files.delete(rows.id)
    for job in (one, two):
        assert (await api.cancel(job.id)).status == "cancelled"
        with pytest.raises(openai.BadRequestError, match="its status is cancelled"):
            await api.resume(job.id)
    assert (await api.list_events(one.id, limit=1)).data[0].message == "The job was cancelled"
    assert [checkpoint async for checkpoint in await api.checkpoints.list(one.id)] == []
    assert (await client.files.delete(rows.id)).deleted
    assert [model.id async for model in await client.models.list()] == ["small"]


async def test_a_change_holds_though_the_job_moves_on_meanwhile(client: openai.AsyncOpenAI, jobs: Jobs) -> None:
    rows = await client.files.create(file=("rows.jsonl", CHAT), purpose="fine-tune")
    api = client.fine_tuning.jobs
    one = await api.create(model="small", training_file=rows.id)
    jobs.meanwhile = 3
    await api.pause(one.id)
    assert (jobs.kept[one.id]["spec"]["suspend"], jobs.meanwhile) == (True, 0)
    jobs.meanwhile = 100
    with pytest.raises(openai.ConflictError, match="has been modified"):
        await api.resume(one.id)


async def test_a_reinforcement_job_reads_its_grader_from_the_claim(
    client: openai.AsyncOpenAI, jobs: Jobs, tmp_path: Path
) -> None:
    row = json.dumps({"messages": [{"role": "user", "content": "2+2?"}], "solution": "4"}).encode()
    rows = await client.files.create(file=("rows.jsonl", row), purpose="fine-tune")
    source = "def grade(sample, item): return 1.0"
    grader: Any = {"type": "python", "name": "own", "source": source}
    method: Any = {"type": "reinforcement", "reinforcement": {"grader": grader}}
    job = await client.fine_tuning.jobs.create(model="small", training_file=rows.id, method=method)
    [reward] = jobs.kept[job.id]["spec"]["method"]["grpo"]["rewards"]
    name = reward["python"]["uri"].removeprefix("pvc://tunesmith-store/openai/")
    assert (tmp_path / "openai" / name).read_text().startswith(source)
    with pytest.raises(openai.BadRequestError, match="does not fit method dpo"):
        await client.fine_tuning.jobs.create(model="small", training_file=rows.id, method={"type": "dpo"})
    with pytest.raises(openai.BadRequestError, match="Available: small"):
        await client.fine_tuning.jobs.create(model="other", training_file=rows.id)


@pytest.mark.parametrize("limit", ["0", "101", "000001999", "1" * 5000, "-1", "x", "²"])
async def test_a_limit_that_is_none_is_refused(address: str, limit: str) -> None:
    headers = {"Authorization": "Bearer trainer"}
    url, query = f"{address}/fine_tuning/jobs", {"limit": limit}
    async with aiohttp.ClientSession(headers=headers) as http, http.get(url, params=query) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == "limit"


async def test_an_upload_that_is_deleted_meanwhile_is_missed_by_no_list(tmp_path: Path) -> None:
    files = Files(tmp_path)
    with files.upload() as file:
        file.write(CHAT)
        kept = files.keep(file, "rows.jsonl")
    (tmp_path / "records" / "file-gone.json").symlink_to("nowhere")  # between the look at the folder and at it
    assert [one.id for one in files.list()] == [kept.id]
