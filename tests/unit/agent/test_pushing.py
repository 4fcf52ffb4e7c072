"""What is pushed is fetched again with the same digest; what was killed on the way is never taken for whole."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tunesmith import artifacts, pushing
from tunesmith.fetching import FetchError, fetch, web
from tunesmith.pushing import PERMANENT, TRANSIENT, PushError, modelscope, oci, push, s3
from unit.agent.servers import Handler, Server, s3_store
from unit.agent.standins import Hub, ModelScope, Registry

Reader = Callable[[Path], dict[str, bytes]]


def artefact(folder: Path, weights: bytes, **files: bytes) -> Path:
    """An adapter as the trainer publishes it."""
    content = {"adapter_config.json": b"{}", "adapter_model.safetensors": weights, **files}
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n# tuned\n")
    manifest = {
        "kind": "adapters", "digest": f"sha256:{artifacts.digest(folder)}",
        "job": {"kind": "FineTuneJob", "namespace": "ns", "name": "tuned"},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def answers(folder: Path) -> Path:
    """What an InferenceJob has made."""
    folder.mkdir()
    (folder / "results.jsonl").write_text('{"row": "rows.jsonl row 1", "answer": "Paris"}\n' * 2000)
    (folder / "metrics.json").write_text('{"rows": 2000}')
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: results.jsonl\n---\n# asked\n"
    )
    manifest = {
        "kind": "results", "digest": f"sha256:{artifacts.digest(folder)}",
        "job": {"kind": "InferenceJob", "namespace": "ns", "name": "asked"},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def secret(folder: Path, **keys: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, value in keys.items():
        (folder / name).write_text(value)
    return folder


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web.time, "sleep", lambda seconds: None)


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return artefact(
        tmp_path / "first", bytes(range(256)) * 1500, **{"extra/old.json": b"[]", "vocab.txt": b"a" * 70_000}
    )


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """Other weights of the same size, and not all of the first one's files."""
    return artefact(tmp_path / "second", bytes(reversed(range(256))) * 1500, **{"vocab.txt": b"b" * 70_000})


@dataclass
class Place:
    """Somewhere to push to, and the keys of who may."""

    uri: str
    secret: Path
    module: Any
    forget: Callable[[], None] = lambda: None
    """Empties it, where what is left makes the next push shorter."""
    client: Any = None
    name: str = ""


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Place]:
    with s3_store("us-east-1") as (endpoint, client):
        name = f"b{abs(hash(tmp_path))}"
        client.create_bucket(Bucket=name)
        keys = secret(tmp_path / "s3", accessKeyId="me", secretAccessKey="hush", endpoint=endpoint)
        yield Place(f"s3://{name}/team/adapter", keys, s3, client=client, name=name)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """One for each protocol that is spoken by ourselves."""
    match request.param:
        case "s3":
            found: Place = request.getfixturevalue("bucket")
            return found
        case "oci":
            registry = request.getfixturevalue("registry")
            keys = secret(tmp_path / "oci", username="me", password="hush")
            forget = lambda: (registry.blobs.clear(), registry.manifests.clear())  # noqa: E731
            return Place(f"oci://{registry.host}/team/adapter:latest", keys, oci, forget)
        case _:
            server = request.getfixturevalue("modelscope")
            forget = lambda: (server.objects.clear(), server.repositories.clear())  # noqa: E731
            return Place("ms://org/tuned", secret(tmp_path / "ms", token="ms_ours"), modelscope, forget)


OURS = pytest.mark.parametrize("place", ["s3", "oci", "ms"], indirect=True)


def fetched(place: Place, to: Path) -> Path:
    return fetch(place.uri, to, place.secret, kind="model")


def read(place: Place, to: Path) -> dict[str, bytes] | None:
    """What a reader gets. None: it is told to come later."""
    try:
        return tree(fetched(place, to))
    except FetchError as error:
        if error.code != TRANSIENT:
            raise
        return None


@OURS
def test_what_is_pushed_is_fetched_with_the_same_digest(place: Place, first: Path, tmp_path: Path) -> None:
    pushed = push(place.uri, first, place.secret)
    found = fetched(place, tmp_path / "to")
    assert tree(found) == tree(first)
    assert pushed.digest == f"sha256:{artifacts.digest(found)}"


@OURS
def test_answers_are_pushed_as_data_and_read_as_a_dataset(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = answers(tmp_path / "made")
    pushed = push(place.uri, made, place.secret)
    assert tree(fetch(place.uri, tmp_path / "to", place.secret, kind="dataset")) == tree(made)
    writes = mortal(monkeypatch, place, None, False)
    again = push(place.uri, made, place.secret)
    assert (again.digest, again.revision, writes) == (pushed.digest, pushed.revision, [])


class Killed(BaseException):
    """The process is gone."""


def mortal(monkeypatch: pytest.MonkeyPatch, place: Place, dies_at: int | None, after: bool) -> list[str]:
    """The pusher dies at its n-th write, before or after it. Returns the methods of its writes."""
    whole, writes = web.send, []

    def send(request: Callable[[], Any]) -> Any:
        if request().get_method() in ("GET", "HEAD"):
            return whole(request)
        writes.append(request().get_method())
        if len(writes) == dies_at and not after:
            raise Killed
        result = whole(request)
        if len(writes) == dies_at:
            raise Killed
        return result

    monkeypatch.setattr(place.module, "send", send)
    return writes


@OURS
def test_the_same_artefact_is_written_once(
    place: Place, first: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pushed = push(place.uri, first, place.secret)
    writes = mortal(monkeypatch, place, None, False)
    again = push(place.uri, first, place.secret)
    assert (again.digest, again.revision) == (pushed.digest, pushed.revision)
    assert writes == []


@OURS
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_write_nobody_takes_a_part_for_the_whole(
    place: Place, first: Path, second: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, after: bool
) -> None:
    """The first artefact is there and the second one is pushed over it: readers get one of them, or an error."""
    number, seen = 0, list[dict[str, bytes] | None]()
    while True:
        number += 1
        place.forget()
        monkeypatch.setattr(place.module, "send", web.send)
        push(place.uri, first, place.secret)
        mortal(monkeypatch, place, number, after)
        try:
            push(place.uri, second, place.secret)
            break
        except Killed:
            pass
        found = read(place, tmp_path / f"{number}")
        assert found in (tree(first), tree(second)) or (found is None and place.module is s3), f"killed at {number}"
        seen.append(found)
        monkeypatch.setattr(place.module, "send", web.send)
        push(place.uri, second, place.secret)
        assert tree(fetched(place, tmp_path / f"{number}-again")) == tree(second)
    assert number > 2
    assert (None if place.module is s3 else tree(first)) in seen


def test_s3_sends_large_files_in_parts_and_only_what_is_not_there(
    bucket: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PART", 5 * 1024 * 1024)
    large = artefact(tmp_path / "large", os.urandom(12 * 1024 * 1024))
    writes = mortal(monkeypatch, bucket, None, False)
    push(bucket.uri, large, bucket.secret)
    # marker; configuration and card; the weights: begun, three parts, completed; manifest; the marker's end
    assert writes == ["PUT", "PUT", "PUT", "POST", "PUT", "PUT", "PUT", "POST", "PUT", "DELETE"]
    head = bucket.client.head_object(Bucket=bucket.name, Key="team/adapter/adapter_model.safetensors")
    assert head["ETag"].endswith('-3"')
    assert tree(fetched(bucket, tmp_path / "to")) == tree(large)
    writes.clear()
    (large / "README.md").write_text("another card")
    bucket.client.delete_object(Bucket=bucket.name, Key="team/adapter/manifest.json")
    bucket.client.put_object(Bucket=bucket.name, Key="team/adapter/.tunesmith-push", Body=b"")
    push(bucket.uri, large, bucket.secret)
    assert writes == ["PUT", "PUT", "PUT", "DELETE"]  # marker, card, manifest


def test_s3_writes_nothing_over_what_is_not_its_own(bucket: Place, first: Path) -> None:
    bucket.client.put_object(Bucket=bucket.name, Key="team/adapter/diary.txt", Body=b"mine")
    with pytest.raises(PushError, match=r"diary.txt lies there, and no artefact of tunesmith's") as error:
        push(bucket.uri, first, bucket.secret)
    assert error.value.code == PERMANENT
    listed = bucket.client.list_objects_v2(Bucket=bucket.name)["Contents"]
    assert [one["Key"] for one in listed] == ["team/adapter/diary.txt"]


def test_an_upload_that_s3_does_not_complete_is_aborted(
    bucket: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PART", 5 * 1024 * 1024)
    large = artefact(tmp_path / "large", os.urandom(12 * 1024 * 1024))
    mortal(monkeypatch, bucket, 5, False)
    with pytest.raises(Killed):
        push(bucket.uri, large, bucket.secret)
    assert "Uploads" not in bucket.client.list_multipart_uploads(Bucket=bucket.name)


def test_a_registrys_token_may_end_in_the_middle(registry: Registry, first: Path, tmp_path: Path) -> None:
    registry.lasts = 3
    keys = secret(tmp_path / "oci", username="me", password="hush")
    uri = f"oci://{registry.host}/team/adapter:v1"
    pushed = push(uri, first, keys)
    assert registry.tokens > 3
    assert pushed.revision
    registry.lasts = 100
    by_digest = fetch(f"oci://{registry.host}/team/adapter@{pushed.revision}", tmp_path / "to", keys)
    assert tree(by_digest) == tree(first)
    manifest = json.loads(registry.manifests["v1"])
    assert manifest["artifactType"] == "application/vnd.tunesmith.adapter.v1"
    assert pushed.revision == f"sha256:{hashlib.sha256(registry.manifests['v1']).hexdigest()}"


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_modelscopes_own_client_pushes_the_same_and_gets_what_we_pushed(
    modelscope: ModelScope, first: Path, tmp_path: Path, kind: str
) -> None:
    """So the stand-in takes what the client knows of the service, and we send the same."""
    made = first if kind == "model" else answers(tmp_path / "made")
    environment = os.environ | {"HOME": str(tmp_path), "MODELSCOPE_CACHE": str(tmp_path / "cache")}

    def client(script: str, *arguments: str) -> None:
        code = "import sys; from modelscope_hub import HubApi; api = HubApi(token='ms_ours')\n" + script
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, timeout=120, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    push("ms://org/ours", made, secret(tmp_path / "ms", token="ms_ours"))
    client(f"api.download_repo('org/ours', repo_type='{kind}', local_dir=sys.argv[1])", str(tmp_path / "to"))
    found = tree(tmp_path / "to")
    assert {name: data for name, data in found.items() if name in tree(made)} == tree(made)
    wanted = tree(made)  # the client leaves a cache there
    client(
        f"api.create_repo('org/theirs', '{kind}', visibility='private')\n"
        f"api.upload_folder('org/theirs', repo_type='{kind}', folder_path=sys.argv[1])",
        str(made),
    )
    theirs, ours = (modelscope.repositories[f"{kind}s/org/{name}"] for name in ("theirs", "ours"))
    assert {name: data for name, data in theirs.items() if name in ours} == ours
    assert modelscope.private == {f"{kind}s/org/ours", f"{kind}s/org/theirs"}
    assert set(ours) == {*wanted, ".gitattributes"}


def run(uri: str, folder: Path, keys: Path | None, *options: str) -> subprocess.CompletedProcess[str]:
    """As a pod runs it. The Hub's client reads its environment when it is imported."""
    source = str(Path(pushing.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": source, "HF_TOKEN": "not-ours"}
    command = [sys.executable, "-m", "tunesmith.pushing", "--uri", uri, "--artifact", str(folder), *options]
    command += ["--secret", str(keys)] if keys else []
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


class TestHub:
    """With huggingface_hub's own client."""

    @pytest.mark.parametrize("revision", ["", "@tuned"])
    def test_a_push_is_one_commit_which_is_fetched_with_the_same_digest(
        self, a_hub: Hub, first: Path, second: Path, tmp_path: Path, revision: str
    ) -> None:
        keys, log = secret(tmp_path / "hf", token="hf_ours"), tmp_path / "log"
        uri, branch = f"hf://org/tuned{revision}", revision[1:] or "main"
        for number, source in enumerate((first, second), 1):
            for _ in range(2):  # the second time nothing is written
                done = run(uri, source, keys, "--termination-log", str(log))
                assert done.returncode == 0, done.stderr
                said = json.loads(log.read_text())
                assert said.pop("time").endswith("Z")
                repository = a_hub.repositories["models/org/tuned"]
                assert repository.commits == number
                assert said == {
                    "uri": uri, "digest": f"sha256:{artifacts.digest(source)}", "revision": repository.head(branch),
                }  # fmt: skip
                assert repository.private
            to = tmp_path / f"to-{number}"
            script = "import sys; from pathlib import Path; from tunesmith.fetching import fetch\n"
            script += "fetch(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), 'model')"
            pinned = f"hf://org/tuned@{said['revision']}"
            command = [sys.executable, "-c", script, pinned, str(to), str(keys)]
            subprocess.run(command, check=True, timeout=60)
            assert tree(to) == tree(source)
        assert not any("not-ours" in str(headers) for _, headers in a_hub.server.seen)

    def test_answers_are_a_repository_of_data(self, a_hub: Hub, tmp_path: Path) -> None:
        made, keys = answers(tmp_path / "made"), secret(tmp_path / "hf", token="hf_ours")
        for _ in range(2):
            done = run("hf://org/asked@june", made, keys)
            assert done.returncode == 0, done.stderr
        [(name, repository)] = a_hub.repositories.items()
        assert (name, repository.commits, repository.private) == ("datasets/org/asked", 1, True)
        script = "import sys; from pathlib import Path; from tunesmith.fetching import fetch\n"
        script += "fetch('hf://org/asked@june', Path(sys.argv[1]), Path(sys.argv[2]), 'dataset')"
        subprocess.run([sys.executable, "-c", script, str(tmp_path / "to"), str(keys)], check=True, timeout=60)
        assert tree(tmp_path / "to") == tree(made)

    def test_killed_before_its_commit_it_leaves_what_was_there(
        self, a_hub: Hub, first: Path, second: Path, tmp_path: Path
    ) -> None:
        keys = secret(tmp_path / "hf", token="hf_ours")
        assert run("hf://org/tuned", first, keys).returncode == 0
        before = dict(a_hub.repositories["models/org/tuned"].branches["main"])
        whole, calls = a_hub.server.answer, [0]

        def gone(handler: Handler) -> None:
            if handler.path.startswith("/lfs/"):
                calls[0] += 1
                whole(handler)
            elif calls[0]:
                handler.send(503)
            else:
                whole(handler)

        a_hub.server.answer = gone
        done = run("hf://org/tuned", second, keys)
        assert done.returncode == TRANSIENT, done.stderr
        assert a_hub.repositories["models/org/tuned"].branches["main"] == before
        a_hub.server.answer = whole
        assert run("hf://org/tuned", second, keys).returncode == 0
        now = a_hub.repositories["models/org/tuned"].branches["main"]
        assert now.keys() == {*tree(second), ".gitattributes"}

    def test_a_commit_of_another_is_not_overwritten(self, a_hub: Hub, first: Path, tmp_path: Path) -> None:
        whole = a_hub.server.answer

        def meanwhile(handler: Handler) -> None:
            if "/preupload/" in handler.path:
                a_hub.repositories["models/org/tuned"].branches["main"]["theirs.txt"] = b"x"
            whole(handler)

        a_hub.server.answer = meanwhile
        done = run("hf://org/tuned", first, secret(tmp_path / "hf", token="hf_ours"))
        assert done.returncode == TRANSIENT
        assert "412" in done.stderr
        assert a_hub.repositories["models/org/tuned"].commits == 0

    def test_public_is_asked_for(self, a_hub: Hub, first: Path, tmp_path: Path) -> None:
        assert run("hf://org/tuned", first, secret(tmp_path / "hf", token="hf_ours"), "--public").returncode == 0
        assert not a_hub.repositories["models/org/tuned"].private

    @pytest.mark.parametrize(("keys", "status"), [({}, 401), ({"token": "hf_readonly"}, 403)])
    def test_a_refusal_names_the_key_that_is_needed(
        self, a_hub: Hub, first: Path, tmp_path: Path, keys: dict[str, str], status: int
    ) -> None:
        log = tmp_path / "log"
        done = run("hf://org/tuned", first, secret(tmp_path / "hf", **keys), "--termination-log", str(log))
        assert done.returncode == PERMANENT
        assert f"hf://org/tuned: the Hub answers {status}: the Secret of secretRef needs `token`" in done.stderr
        said = json.loads(log.read_text())
        assert said["reason"] == "ConfigError"
        assert "`token`" in said["message"]


@pytest.mark.parametrize(
    ("kind", "change", "needed"),
    [
        ("s3", {"status": 403}, "accessKeyId"),
        ("oci", {"status": 403}, "may push"),
        ("ms", {"token": "wrong"}, "`token`: one that may write"),
    ],
)
def test_a_refusal_names_the_destination_and_what_the_secret_needs(
    kind: str, change: dict[str, Any], needed: str, first: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue("server")
    if kind == "ms":
        request.getfixturevalue("modelscope")
        uri, keys = "ms://org/tuned", secret(tmp_path / "keys", **change)
    elif kind == "oci":
        registry: Registry = request.getfixturevalue("registry")
        answer = registry.answer
        server.answer = lambda h: answer(h) if h.command == "GET" else h.send(403)
        uri = f"oci://{registry.host}/team/adapter:v1"
        keys = secret(tmp_path / "keys", username="me", password="hush")
    else:
        server.answer = lambda h: h.send(200, b"<R/>") if h.command == "GET" else h.send(403)
        uri = "s3://bucket/a"
        keys = secret(tmp_path / "keys", accessKeyId="me", secretAccessKey="hush", endpoint=f"http://{server.address}")
    with pytest.raises(PushError, match=f"{uri}: .* answers 403 .*the Secret of secretRef needs .*{needed}") as error:
        push(uri, first, keys)
    assert error.value.code == PERMANENT


def test_who_may_not_even_look_is_told_the_same(server: Server, first: Path, tmp_path: Path) -> None:
    server.answer = lambda h: h.send(403)
    keys = secret(tmp_path / "keys", endpoint=f"http://{server.address}")
    with pytest.raises(PushError, match=r"403 Forbidden: check the Secret in secretRef. Pushing needs `accessKeyId`"):
        push("s3://bucket/a", first, keys)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("pvc://claim/x", "cannot be pushed to"),
        ("https://host/x", "cannot be pushed to"),
        ("oci://127.0.0.1:9/team/adapter", "pushed to a tag"),
        ("oci://127.0.0.1:9/a@sha256:" + "0" * 64, "pushed to a tag"),
        ("hf://one", "not of the form hf://"),
        ("ms://one", "not of the form ms://"),
    ],
)
def test_where_nothing_can_be_pushed_is_named(uri: str, reason: str, first: Path) -> None:
    with pytest.raises(PushError, match=reason) as error:
        push(uri, first)
    assert error.value.code == PERMANENT


def test_only_whole_artefacts_are_pushed(first: Path, tmp_path: Path) -> None:
    (first / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(PushError, match=r"but its manifest says .* damaged"):
        push("s3://bucket/a", first)
    (first / "manifest.json").unlink()
    with pytest.raises(PushError, match=r"has no manifest\.json"):
        push("s3://bucket/a", first)


def test_a_server_that_is_not_there_is_tried_again_later(first: Path, tmp_path: Path) -> None:
    keys = secret(tmp_path / "keys", endpoint="http://127.0.0.1:9")
    with pytest.raises(PushError, match="reachable") as error:
        push("s3://bucket/a", first, keys)
    assert error.value.code == TRANSIENT
