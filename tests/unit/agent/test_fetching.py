"""Fetching from https with a certificate of our own, from S3 and from a hub that speaks the Hub's API."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from tunesmith import fetching
from tunesmith.fetching import NOT_FOUND, PERMANENT, TRANSIENT, FetchError, fetch, s3, shared, web
from unit.agent.servers import Handler, Server, s3_store
from unit.agent.standins import Hub, Registry

CONTENT = bytes(range(256)) * 40_000
REAL_SLEEP = time.sleep
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web.time, "sleep", lambda seconds: None)


def secret(folder: Path, **keys: str) -> Path:
    folder.mkdir()
    for name, value in keys.items():
        (folder / name).write_text(value + "\n")
    return folder


def until(what: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        REAL_SLEEP(0.02)


def uri(server: Server, path: str = "/data/train.jsonl", sha: str = SHA) -> str:
    return f"https://{server.address}{path}#sha256={sha}"


# --- https -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tls")
class TestHttps:
    def test_a_file_lies_in_the_folder_under_its_own_name(self, server, tmp_path):
        server.answer = lambda h: h.file(CONTENT)
        lines: list[str] = []
        folder = fetch(uri(server, "/a%20b.jsonl"), tmp_path / "to", progress=lines.append)
        assert [p.name for p in folder.iterdir()] == ["a b.jsonl"]
        assert (folder / "a b.jsonl").read_bytes() == CONTENT
        assert lines[-1].endswith(f"is at {folder}")
        assert [p.name for p in tmp_path.iterdir()] == ["to"]

    def test_what_is_there_is_not_fetched_again(self, server, tmp_path):
        (tmp_path / "to").mkdir()
        fetch(uri(server), tmp_path / "to")
        assert server.seen == []

    def test_a_transfer_that_breaks_off_goes_on_where_it_was(self, server, tmp_path):
        server.answer = lambda h: h.file(CONTENT, cut=4_000_000 if len(server.seen) < 3 else 0)
        folder = fetch(uri(server), tmp_path / "to")
        assert (folder / "train.jsonl").read_bytes() == CONTENT
        starts = [headers.get("range", "bytes=0-") for _, headers in server.seen]
        assert starts == ["bytes=0-", *(f"bytes={n}-" for n in (len(CONTENT) - 4_000_000, len(CONTENT) - 4_000_000))]

    def test_a_killed_fetch_goes_on_where_it_was(self, server, tmp_path):
        (tmp_path / "to.partial").mkdir()
        (tmp_path / "to.partial" / "train.jsonl.part").write_bytes(CONTENT[:1000])
        server.answer = lambda h: h.file(CONTENT)
        assert (fetch(uri(server), tmp_path / "to") / "train.jsonl").read_bytes() == CONTENT
        assert server.seen[0][1]["range"] == "bytes=1000-"

    def test_a_server_without_ranges_is_read_from_the_start(self, server, tmp_path):
        (tmp_path / "to.partial").mkdir()
        (tmp_path / "to.partial" / "train.jsonl.part").write_bytes(b"other")
        server.answer = lambda h: h.send(200, CONTENT)
        assert (fetch(uri(server), tmp_path / "to") / "train.jsonl").read_bytes() == CONTENT

    def test_leftovers_longer_than_the_file_are_dropped(self, server, tmp_path):
        (tmp_path / "to.partial").mkdir()
        (tmp_path / "to.partial" / "train.jsonl.part").write_bytes(CONTENT + b"more")
        server.answer = lambda h: h.file(CONTENT)
        assert (fetch(uri(server), tmp_path / "to") / "train.jsonl").read_bytes() == CONTENT

    def test_another_digest_is_refused_and_nothing_stays(self, server, tmp_path):
        server.answer = lambda h: h.file(CONTENT)
        address = uri(server, sha="0" * 64)
        with pytest.raises(FetchError, match=f"{address}.*has sha256 {SHA}") as error:
            fetch(address, tmp_path / "to")
        assert error.value.code == PERMANENT
        assert not (tmp_path / "to").exists()
        assert list((tmp_path / "to.partial").iterdir()) == []

    @pytest.mark.parametrize(
        ("status", "code", "reason"),
        [(401, PERMANENT, "secretRef"), (403, PERMANENT, "secretRef"), (404, NOT_FOUND, "check the address"),
         (400, PERMANENT, "400"), (500, TRANSIENT, "try later"), (429, TRANSIENT, "try later")],
    )  # fmt: skip
    def test_refusals_say_what_to_do(self, server, tmp_path, status, code, reason):
        server.answer = lambda h: h.send(status)
        with pytest.raises(FetchError, match=reason) as error:
            fetch(uri(server), tmp_path / "to")
        assert error.value.code == code
        assert len(server.seen) == (5 if code == TRANSIENT else 1)

    def test_a_server_that_recovers_is_asked_again(self, server, tmp_path):
        server.answer = lambda h: h.send(503) if len(server.seen) < 3 else h.file(CONTENT)
        fetch(uri(server), tmp_path / "to")

    def test_the_authorization_header_stays_with_its_host(self, server, tmp_path):
        keys = secret(tmp_path / "secret", authorization="Bearer abc")
        port = server.server_address[1]

        def answer(handler: Handler) -> None:
            if handler.path == "/data/train.jsonl":
                handler.send(302, headers={"Location": f"https://localhost:{port}/elsewhere"})
            else:
                handler.file(CONTENT)

        server.answer = answer
        fetch(uri(server), tmp_path / "to", keys)
        assert [(path, "authorization" in headers) for path, headers in server.seen] == [
            ("/data/train.jsonl", True),
            ("/elsewhere", False),
        ]

    def test_a_redirect_to_http_is_refused(self, server, tmp_path):
        server.answer = lambda h: h.send(302, headers={"Location": f"http://{server.address}/elsewhere"})
        with pytest.raises(FetchError, match="not https"):
            fetch(uri(server), tmp_path / "to")
        assert len(server.seen) == 1

    @pytest.mark.parametrize("path", ["", "/", "/..", "/%2e%2e", "/a/..%2f..%2fb"])
    def test_no_path_is_written_outside_of_the_folder(self, server, tmp_path, path):
        server.answer = lambda h: h.file(CONTENT)
        folder = fetch(uri(server, path), tmp_path / "to")
        assert [p.parent for p in folder.rglob("*") if p.is_file()] == [folder]


def test_an_https_address_without_a_digest_is_refused(tmp_path):
    with pytest.raises(FetchError, match="#sha256="):
        fetch("https://127.0.0.1/x", tmp_path / "to")


@pytest.mark.usefixtures("tls")
def test_certificates_are_checked(server, tmp_path, monkeypatch):
    server.answer = lambda h: h.file(CONTENT)
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(FetchError, match="certificate") as error:
        fetch(uri(server), tmp_path / "to")
    assert error.value.code == TRANSIENT
    assert server.seen == []


# --- s3 --------------------------------------------------------------------------------------------------------------


def test_signatures_are_those_of_the_specification():
    """The examples of AWS's documentation."""
    bucket = s3.Bucket(
        "examplebucket", "https://examplebucket.s3.amazonaws.com", "us-east-1",
        "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    )  # fmt: skip
    now = datetime(2013, 5, 24, tzinfo=UTC)
    headers = {"host": "examplebucket.s3.amazonaws.com", "x-amz-content-sha256": s3.EMPTY}
    signed = s3.sign(bucket, "GET", "/test.txt", "", {**headers, "range": "bytes=0-9"}, now)
    assert signed["Authorization"].endswith(
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )
    signed = s3.sign(bucket, "GET", "/", "max-keys=2&prefix=J", headers, now)
    assert signed["Authorization"].endswith(
        "Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
    )


OBJECTS = {
    "runs/a/adapter_config.json": b"{}",
    "runs/a/adapter_model.safetensors": CONTENT,
    "runs/a/sub/x y+z.txt": b"odd",
    "runs/a/": b"",
    "runs/ab/other": b"other",
    "runs/train.jsonl": b"rows",
}


@pytest.fixture
def bucket(server: Server, tmp_path: Path) -> Path:
    """A server that speaks S3, two objects a page. Returns the Secret's folder."""
    objects = dict(OBJECTS)

    def answer(handler: Handler) -> None:
        parts = urlsplit(handler.path)
        key = unquote(parts.path).removeprefix("/bucket/")
        if not handler.headers.get("Authorization", "").startswith("AWS4-HMAC-SHA256 Credential=me/"):
            handler.send(403)
        elif key:
            handler.file(objects[key], ETag=f'"{len(objects[key])}"')
        else:
            query = {k: v[0] for k, v in parse_qs(parts.query).items()}
            names = sorted(k for k in objects if k.startswith(query["prefix"]))
            start = int(query.get("continuation-token", "0"))
            items = "".join(
                f"<Contents><Key>{k}</Key><Size>{len(objects[k])}</Size><ETag>&quot;{len(objects[k])}&quot;</ETag>"
                "</Contents>"
                for k in names[start : start + 2]
            )
            more = f"<NextContinuationToken>{start + 2}</NextContinuationToken>" if len(names) > start + 2 else ""
            space = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
            handler.send(200, f"<ListBucketResult {space}>{items}{more}</ListBucketResult>".encode())

    server.answer = answer
    return secret(tmp_path / "secret", accessKeyId="me", secretAccessKey="hush", endpoint=f"http://{server.address}/")


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("path", ["runs/a", "runs/a/"])
def test_s3_prefixes_become_folders(bucket, tmp_path, path):
    folder = fetch(f"s3://bucket/{path}", tmp_path / "to", bucket)
    assert tree(folder) == {k.removeprefix("runs/a/"): v for k, v in OBJECTS.items() if k.startswith("runs/a/") and v}


def test_s3_objects_lie_in_the_folder_under_their_own_name(bucket, tmp_path):
    assert tree(fetch("s3://bucket/runs/train.jsonl", tmp_path / "to", bucket)) == {"train.jsonl": b"rows"}


def test_s3_goes_on_where_it_was(bucket, server, tmp_path):
    partial = tmp_path / "to.partial"
    partial.mkdir()
    (partial / "adapter_config.json").write_bytes(b"{}")
    (partial / "adapter_model.safetensors.part").write_bytes(CONTENT[:5000])
    folder = fetch("s3://bucket/runs/a", tmp_path / "to", bucket)
    assert (folder / "adapter_model.safetensors").read_bytes() == CONTENT
    asked = dict(server.seen)
    assert not any("adapter_config" in path for path in asked)
    headers = asked["/bucket/runs/a/adapter_model.safetensors"]
    assert headers["range"] == "bytes=5000-"
    assert headers["if-match"] == f'"{len(CONTENT)}"'


@pytest.mark.parametrize(
    ("change", "address", "code", "reason"),
    [
        ({}, "s3://bucket/runs/none", NOT_FOUND, "no object runs/none"),
        ({"accessKeyId": "you"}, "s3://bucket/runs/a", PERMANENT, "secretRef"),
        ({"accessKeyId": None}, "s3://bucket/runs/a", PERMANENT, "has no key accessKeyId"),
        ({"endpoint": "127.0.0.1:9"}, "s3://bucket/runs/a", PERMANENT, "must begin with http"),
        ({"endpoint": "http://127.0.0.1:9"}, "s3://bucket/runs/a", TRANSIENT, "is it right and reachable"),
    ],
)  # fmt: skip
def test_s3_errors_say_what_to_do(bucket, tmp_path, change, address, code, reason):
    for name, value in change.items():
        if value is None:
            (bucket / name).unlink()
        else:
            (bucket / name).write_text(value)
    with pytest.raises(FetchError, match=reason) as error:
        fetch(address, tmp_path / "to", bucket)
    assert error.value.code == code
    assert str(error.value).startswith(address)


def test_s3_keys_do_not_lead_out_of_the_folder(server, tmp_path):
    listing = b"<R><Contents><Key>a/../../x</Key><Size>1</Size><ETag>e</ETag></Contents></R>"
    server.answer = lambda h: h.send(200, listing)
    keys = secret(tmp_path / "secret", endpoint=f"http://{server.address}")
    with pytest.raises(FetchError, match="outside of the folder"):
        fetch("s3://bucket/a", tmp_path / "to", keys)


def test_s3_against_moto(tmp_path):
    with s3_store("eu-central-1") as (endpoint, client):
        client.create_bucket(Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        for key, body in OBJECTS.items():
            client.put_object(Bucket="bucket", Key=key, Body=body)
        keys = secret(
            tmp_path / "secret", accessKeyId="me", secretAccessKey="hush", endpoint=endpoint, region="eu-central-1"
        )
        folder = fetch("s3://bucket/runs/a", tmp_path / "to", keys)
        assert tree(folder)["adapter_model.safetensors"] == CONTENT
        assert tree(folder)["sub/x y+z.txt"] == b"odd"


def test_gs_is_the_same_protocol_at_googles_address(tmp_path):
    with pytest.raises(FetchError, match=r"https://storage\.googleapis\.com"):
        fetch("gs://bucket/runs/a", tmp_path / "to")
    with s3_store("us-east-1") as (endpoint, client):
        client.create_bucket(Bucket="of-google")
        client.put_object(Bucket="of-google", Key="a/adapter_config.json", Body=b"{}")
        keys = secret(tmp_path / "secret", accessKeyId="me", secretAccessKey="hush", endpoint=endpoint)
        assert tree(fetch("gs://of-google/a", tmp_path / "there", keys)) == {"adapter_config.json": b"{}"}


# --- oci -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def docker(tmp_path: Path, registry: Registry) -> Path:
    config = {"auths": {f"https://{registry.host}/v1/": {"username": "me", "password": "hush"}}}
    return secret(tmp_path / "docker", **{".dockerconfigjson": json.dumps(config)})


def archive(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def test_oci_files_are_fetched_where_they_broke_off_with_a_docker_secret(registry, docker, tmp_path):
    layers = [registry.blob(b"{}", "adapter_config.json"), registry.blob(CONTENT, "adapter_model.safetensors")]
    digest = registry.push("v1", *layers)
    registry.cuts = 2
    found = tree(fetch(f"oci://{registry.host}/team/adapter:v1", tmp_path / "to", docker))
    assert found == {"adapter_config.json": b"{}", "adapter_model.safetensors": CONTENT}
    pair = secret(tmp_path / "pair", username="me", password="hush")
    assert tree(fetch(f"oci://{registry.host}/team/adapter@{digest}", tmp_path / "by-digest", pair)) == found


def test_oci_layers_of_images_are_unpacked_and_lead_nowhere_else(registry, docker, tmp_path):
    kind = "application/vnd.oci.image.layer.v1.tar+gzip"
    registry.push("image", registry.blob(archive(("adapter_config.json", b"{}"), ("sub/x", b"y")), None, kind))
    found = tree(fetch(f"oci://{registry.host}/team/adapter:image", tmp_path / "to", docker))
    assert found == {"adapter_config.json": b"{}", "sub/x": b"y"}
    registry.push("evil", registry.blob(archive(("../outside", b"x")), None, kind))
    with pytest.raises(FetchError, match="cannot be unpacked"):
        fetch(f"oci://{registry.host}/team/adapter:evil", tmp_path / "evil" / "to", docker)
    assert not (tmp_path / "evil" / "outside").exists()
    registry.push("title", registry.blob(b"x", "../outside"))
    with pytest.raises(FetchError, match="outside of the folder"):
        fetch(f"oci://{registry.host}/team/adapter:title", tmp_path / "evil2" / "to", docker)


def test_oci_says_what_is_wrong(registry, docker, tmp_path):
    address = f"oci://{registry.host}/team/adapter"
    with pytest.raises(FetchError, match="check the Secret") as refused:
        fetch(f"{address}:v1", tmp_path / "to", secret(tmp_path / "wrong", username="you", password="x"))
    assert refused.value.code == PERMANENT
    with pytest.raises(FetchError, match="check the address") as absent:
        fetch(f"{address}:v1", tmp_path / "to", docker)
    assert absent.value.code == NOT_FOUND
    layer = registry.blob(b"right", "x")
    registry.blobs[str(layer["digest"])] = b"wrong"
    registry.push("damaged", layer)
    with pytest.raises(FetchError, match="the transfer was damaged") as damaged:
        fetch(f"{address}:damaged", tmp_path / "to", docker)
    assert damaged.value.code == TRANSIENT
    assert not (tmp_path / "to").exists()


# --- hf --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(a_hub: Hub) -> Hub:
    """A Hub with two repositories."""
    a_hub.add(
        "models/org/adapter", {"adapter_config.json": b"{}", "adapter_model.safetensors": CONTENT, "old.bin": b"x"}
    )
    a_hub.add("datasets/org/rows", {"train.jsonl": b"rows", "data.bin": b"kept"})
    return a_hub


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """As an init container runs it. The Hub's client reads its environment when it is imported."""
    source = str(Path(fetching.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": source, "HF_TOKEN": "not-ours"}
    command = [sys.executable, "-m", "tunesmith.fetching", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_hub_models_come_without_pickles(hub, server, tmp_path):
    done = run("--uri", "hf://org/adapter@v1", "--to", str(tmp_path / "to"))
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "to") == {"adapter_config.json": b"{}", "adapter_model.safetensors": CONTENT}
    assert "2 files" in done.stdout
    assert not any("not-ours" in str(headers) for _, headers in server.seen), "only the Secret's token is sent"


@pytest.mark.parametrize("kind", ["auto", "dataset"])
def test_hub_datasets_come_whole(hub, tmp_path, kind):
    done = run("--uri", "hf://org/rows", "--to", str(tmp_path / "to"), "--kind", kind)
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "to") == {"train.jsonl": b"rows", "data.bin": b"kept"}


def test_hub_tokens_come_from_the_secret(hub, server, tmp_path):
    hub.add("models/org/private", {"adapter_config.json": b"{}"}).private = True
    done = run("--uri", "hf://org/private", "--to", str(tmp_path / "to"))
    assert done.returncode == NOT_FOUND
    assert "name a Secret with a token" in done.stderr
    keys = secret(tmp_path / "secret", token="hf_ours")
    done = run("--uri", "hf://org/private", "--to", str(tmp_path / "to"), "--secret", str(keys))
    assert done.returncode == 0, done.stderr
    assert "hf_ours" not in done.stdout + done.stderr


def test_hub_errors_say_what_to_do(hub, tmp_path):
    log = tmp_path / "termination-log"
    options = ("--to", str(tmp_path / "to"), "--kind", "model", "--termination-log", str(log))
    done = run("--uri", "hf://org/adapter@v9", *options)
    assert (done.returncode, done.stderr) == (
        NOT_FOUND,
        "hf://org/adapter@v9: there is no revision v9: check the part after @\n",
    )
    assert json.loads(log.read_text())["reason"] == "ModelError"
    os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # restored by the fixture
    done = run("--uri", "hf://org/adapter", *options)
    assert done.returncode == TRANSIENT
    assert "hf://org/adapter: " in done.stderr
    assert json.loads(log.read_text())["reason"] == "Internal"


# --- all -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["ftp://host/x", "pvc://claim/x", "nonsense", "hf://one", "hf://a/b@"])
def test_addresses_that_cannot_be_fetched_are_named(address, tmp_path):
    with pytest.raises(FetchError, match=address) as error:
        fetch(address, tmp_path / "to")
    assert error.value.code == PERMANENT


def test_a_missing_secret_is_named(tmp_path):
    with pytest.raises(FetchError, match="mount it"):
        fetch("s3://bucket/x", tmp_path / "to", tmp_path / "nowhere")


def test_a_volume_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FetchError, match="full or read-only") as error:
        fetch("s3://bucket/x", tmp_path / "file" / "to")
    assert error.value.code == TRANSIENT


def test_the_folder_must_be_named_absolutely():
    done = run("--uri", "hf://a/b", "--to", "relative")
    assert done.returncode == PERMANENT
    assert "not an absolute path" in done.stderr


# --- a claim that many pods fetch to ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("tls")
class TestShared:
    def claim(self, root: Path) -> Path:
        return root / ".tunesmith" / "models" / "one"

    def start(self, server, to: Path, keep_days: float = 14) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(Path(fetching.__file__).parents[2])}
        command = [*(sys.executable, "-m", "tunesmith.fetching", "--uri", uri(server), "--to", str(to), "--shared")]
        command += ["--keep-days", str(keep_days)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def test_one_of_many_pods_fetches_and_the_others_wait_for_it(self, server, tmp_path):
        all_there = threading.Event()
        server.answer = lambda h: (all_there.wait(60), h.file(CONTENT))
        pods = [self.start(server, self.claim(tmp_path)) for _ in range(4)]
        until(lambda: len(server.seen) == 1)
        REAL_SLEEP(1)  # the others have come to the lock, too
        all_there.set()
        said = [pod.communicate(timeout=60)[0] for pod in pods]
        assert [pod.returncode for pod in pods] == [0] * 4
        assert len(server.seen) == 1
        assert (self.claim(tmp_path) / "train.jsonl").read_bytes() == CONTENT
        assert sum("already" in text for text in said) == 3

    def test_where_the_pod_that_fetches_dies_another_one_goes_on(self, server, tmp_path):
        half = threading.Event()

        def slowly(handler) -> None:
            if len(server.seen) == 1:
                handler.send_response(200)
                handler.send_header("Content-Length", str(len(CONTENT)))
                handler.end_headers()
                handler.wfile.write(CONTENT[: 8 * 1024 * 1024])
                handler.wfile.flush()
                half.wait(60)
            else:
                handler.file(CONTENT)

        server.answer = slowly
        first = self.start(server, self.claim(tmp_path))
        part = self.claim(tmp_path).with_name("one.partial") / "train.jsonl.part"
        until(lambda: part.exists() and part.stat().st_size > 1_000_000)
        second = self.start(server, self.claim(tmp_path))
        REAL_SLEEP(1)
        assert len(server.seen) == 1
        first.kill()
        half.set()
        first.communicate()
        assert second.communicate(timeout=60)
        assert second.returncode == 0
        assert int(server.seen[1][1]["range"].removeprefix("bytes=").rstrip("-")) > 1_000_000
        assert (self.claim(tmp_path) / "train.jsonl").read_bytes() == CONTENT

    def test_only_what_nobody_has_used_for_so_long_is_removed(self, server, tmp_path):
        server.answer = lambda h: h.file(CONTENT)
        folder = self.claim(tmp_path).parent
        group = tmp_path / ".tunesmith" / "adapters" / "uid"
        for path in (folder / "old", folder / "used", folder / "held", group):
            path.mkdir(parents=True)
            shared.mark(path)
            os.utime(shared.used(path), (0, 0))
        shared.mark(folder / "used")
        (folder / "unknown").mkdir()  # somebody else's
        with open(folder / ".held.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            pod = self.start(server, self.claim(tmp_path), keep_days=1)
            out, errors = pod.communicate(timeout=60)
            assert pod.returncode == 0, errors
        assert {path.name for path in folder.iterdir() if path.is_dir()} == {"one", "used", "held", "unknown"}
        assert not group.exists()
        assert f"{folder}/old was not used for 1 days: removed" in out
