"""The look at a model and its data before a job begins: folders, a hub, S3."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

import pytest
import tunesmith
from tunesmith.inspecting.__main__ import main
from tunesmith.training import location
from tunesmith.training.report import Ending, Inspection, Report
from unit.agent.servers import Handler, Server, s3_store

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 100,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip
SHAPES = {
    "model.embed_tokens.weight": [100, 8],
    "model.norm.weight": [8],
    "model.layers.0.input_layernorm.weight": [8],
    "model.layers.0.self_attn.q_proj.weight": [8, 8],
    "model.layers.0.mlp.up_proj.weight": [16, 8],
}
PARAMETERS = 800 + 8 + 8 + 64 + 128


def safetensors(shapes: dict[str, list[int]], padding: int = 0) -> bytes:
    """A file's header, and no weights: they are not to be read."""
    entries: dict[str, Any] = {n: {"dtype": "BF16", "shape": s, "data_offsets": [0, 0]} for n, s in shapes.items()}
    header = json.dumps({"__metadata__": {"format": "pt", "note": "x" * padding}, **entries}).encode()
    return len(header).to_bytes(8, "little") + header


WHOLE = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": safetensors(SHAPES), "README.md": b"hello"}
NAMES = list(SHAPES)
PARTS = {f"model-0000{i}-of-00002.safetensors": NAMES[i - 1 :: 2] for i in (1, 2)}
SPLIT = {
    "config.json": WHOLE["config.json"],
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {name: file for file, names in PARTS.items() for name in names}}
    ).encode(),
    "consolidated.safetensors": safetensors({"other": [1000]}),
    # A header longer than what is read at first.
    **{file: safetensors({n: SHAPES[n] for n in names}, 200_000) for file, names in PARTS.items()},
}


@pytest.fixture
def claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which claims are mounted."""
    monkeypatch.setattr(location, "CLAIMS", str(tmp_path / "claims"))
    monkeypatch.setenv("TUNESMITH_PROGRESS_PORT", "0")
    return tmp_path / "claims"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "termination-log"


def put(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def look(log: Path, *arguments: str) -> Inspection:
    """Run it; it must succeed."""
    assert main([*arguments, "--termination-log", str(log)]) == 0, log.read_text()
    return Inspection.model_validate_json(log.read_bytes())


def refused(log: Path, *arguments: str) -> tuple[int, Ending]:
    code = main([*arguments, "--termination-log", str(log)])
    return code, Ending.model_validate_json(log.read_bytes())


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [WHOLE, SPLIT], ids=["one file", "several"])
def test_a_model_on_a_claim_is_measured_by_its_headers(claims, log, files):
    put(claims / "store" / "base", files)
    (claims / "store" / "train.jsonl").touch()
    found = look(log, "--model", "pvc://store/base", "--input", "pvc://store/train.jsonl", "--input", "hf://a/b")
    assert found.facts
    assert (found.facts.parameters, found.facts.exact, found.facts.dtype) == (PARAMETERS, True, "bfloat16")
    assert found.facts.linears == {"q_proj": (64, 16), "up_proj": (128, 24)}
    assert len(log.read_bytes()) < 1000


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"config.json": None}, r"pvc://store/base: no config.json in .*/store/base; found \['README.md'"),
        ({"config.json": None, "adapter_config.json": b"{}"}, "an adapter: merge it"),
        ({"config.json": b"{"}, "config.json is no JSON"),
        ({"config.json": b"[]"}, "config.json holds no object"),
        ({"config.json": json.dumps({**CONFIG, "quantization_config": {"quant_method": "vptq"}}).encode()}, "vptq"),
        ({"model.safetensors": None, "pytorch_model.bin": b"x"}, "no .*safetensors.*pytorch_model.bin.*Convert"),
        ({"model.safetensors": b"version https://git-lfs.github.com/spec/v1\n"}, "pointer of Git LFS"),
        ({"model.safetensors": b"short"}, "has no safetensors header"),
        ({"model.safetensors": b"\xff" * 100}, "has no safetensors header"),
        ({"model.safetensors": (50).to_bytes(8, "little") + b"{}"}, "Copy the model again"),
        ({"model.safetensors.index.json": SPLIT["model.safetensors.index.json"]}, "names model-00001.*2 of 2 files"),
    ],
)
def test_what_is_wrong_with_a_model_is_said(claims, log, change, reason):
    files = {name: data for name, data in (WHOLE | change).items() if data is not None}
    put(claims / "store" / "base", files)
    code, ending = refused(log, "--model", "pvc://store/base", "--wait", "0")
    assert (code, ending.reason) == (66, "ModelError")
    assert re.search(reason, ending.message), ending.message


@pytest.mark.parametrize(
    ("found", "base", "packed"),
    [
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "CompressedTensors", None),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}, "BitsAndBytes", "NF4"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True}, "BitsAndBytes", "Int8"),
        ({"quant_method": "gptq", "bits": 4}, "GPTQ", "NF4"),
    ],
)
def test_a_quantised_model_is_measured_by_the_layers_that_its_packed_weights_stand_for(
    claims, log, found, base, packed
):
    config = json.dumps({**CONFIG, "quantization_config": found}).encode()
    packing = {"model.layers.0.mlp.up_proj.weight_packed": [16, 1], "model.layers.0.mlp.up_proj.weight_scale": [16, 1]}
    put(claims / "store" / "base", {"config.json": config, "model.safetensors": safetensors(packing)})
    seen = look(log, "--model", "pvc://store/base")
    assert seen.facts
    assert (seen.base, seen.facts.quantized, seen.facts.packed, seen.facts.exact) == (base, True, packed, False)
    assert seen.facts.linears["up_proj"] == (16 * 8, 16 + 8)
    assert seen.facts.parameters > PARAMETERS


def test_an_unknown_architecture_with_headers_is_measured_and_a_model_without_sizes_is_not(claims, log):
    put(claims / "store" / "odd", WHOLE | {"config.json": b'{"model_type": "odd"}'})
    found = look(log, "--model", "pvc://store/odd")
    assert found.facts
    assert (found.facts.architecture, found.facts.parameters) == ("odd", PARAMETERS)
    put(claims / "store" / "empty", WHOLE | {"model.safetensors": safetensors({})})
    found = look(log, "--model", "pvc://store/empty")
    assert found.facts is None
    assert "no tensors" in found.reason


@pytest.mark.parametrize(
    ("arguments", "code", "reason", "words"),
    [
        (["--model", "pvc://store/bse"], 66, "ModelError", ["model pvc://store/bse", 'there is ["base"]']),
        (["--model", "pvc://other/base"], 66, "ModelError", ["model pvc://other/base"]),
        (["--model", "pvc://store/base/config.json"], 66, "ModelError", ["is a file"]),
        (
            ["--model", "pvc://store/base", "--input", "pvc://store/train.jsonl"],
            65, "DataError", ["dataset pvc://store/train.jsonl", "after 0 s"],
        ),
    ],
)  # fmt: skip
def test_what_is_not_there_after_the_wait_is_named(claims, log, arguments, code, reason, words):
    put(claims / "store" / "base", WHOLE)
    found, ending = refused(log, *arguments, "--wait", "0")
    assert (found, ending.reason) == (code, reason)
    assert all(word in ending.message for word in words), ending.message


def test_what_another_pod_writes_is_waited_for_and_told(claims, log, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("TUNESMITH_PROGRESS_PORT", str(port))
    put(claims / "store" / "base", WHOLE)
    told: list[Report] = []

    def write_when_told() -> None:
        end = time.monotonic() + 20
        while not told and time.monotonic() < end:
            try:
                with urlopen(f"http://127.0.0.1:{port}/progress", timeout=5) as answer:
                    told.append(Report.model_validate_json(answer.read()))
            except OSError:
                time.sleep(0.02)
        (claims / "store" / "train.jsonl").touch()

    thread = threading.Thread(target=write_when_told)
    thread.start()
    found = look(log, "--model", "pvc://store/base", "--input", "pvc://store/train.jsonl", "--wait", "30")
    thread.join()
    assert found.facts
    message = "pvc://store/train.jsonl does not exist yet; waiting up to 30 s for it to be written"
    assert told[0].waiting == message
    with pytest.raises(OSError, match="refused"):
        urlopen(f"http://127.0.0.1:{port}/progress", timeout=5)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        (f"https://example.com/model.tar#sha256={'0' * 64}", "archive"),
        ("file:///nowhere/at/all", "lies in the trainer's image"),
    ],
)
def test_what_cannot_be_looked_into_is_no_error(log, uri, reason):
    found = look(log, "--model", uri)
    assert found.facts is None
    assert reason in found.reason


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """As the container runs it. The Hub's client reads its environment when it is imported."""
    source = str(Path(tunesmith.__file__).parents[1])
    command = [sys.executable, "-m", "tunesmith.inspecting", *arguments]
    everything = {**os.environ, "PYTHONPATH": source, "HF_TOKEN": "not-ours", **environment}
    return subprocess.run(command, env=everything, capture_output=True, text=True, timeout=60, check=False)


def test_a_local_model_is_looked_at_without_heavy_libraries(tmp_path, log):
    folder = put(tmp_path / "base", WHOLE)
    code = (
        "import sys; from tunesmith.inspecting.__main__ import main; "
        f"main(['--model', 'file://{folder}', '--termination-log', '{log}']); "
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'huggingface_hub', 'kopf', 'aiohttp'}))"
    )
    source = str(Path(tunesmith.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": source}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"file://{folder}: {PARAMETERS} parameters", "[]"]


# --- s3 --------------------------------------------------------------------------------------------------------------


def test_s3_is_read_in_parts(tmp_path, log):
    with s3_store("us-east-1") as (endpoint, client):
        client.create_bucket(Bucket="bases")
        for name, data in SPLIT.items():
            client.put_object(Bucket="bases", Key=f"models/base/{name}", Body=data)
        keys = {"accessKeyId": "me", "secretAccessKey": "hush", "endpoint": endpoint}
        secret = put(tmp_path / "secret", {name: text.encode() for name, text in keys.items()})
        found = look(log, "--model", "s3://bases/models/base", "--secret", str(secret))
        assert found.facts
        assert found.facts.parameters == PARAMETERS
        code, ending = refused(log, "--model", "s3://bases/models/none", "--secret", str(secret))
        assert (code, ending.reason) == (66, "ModelError")
        assert "s3://bases/models/none: no object models/none" in ending.message


def test_a_store_that_cannot_be_reached_is_no_error_of_the_model(tmp_path, log):
    secret = put(tmp_path / "secret", {"endpoint": b"http://127.0.0.1:9"})
    code, ending = refused(log, "--model", "s3://bases/models/base", "--secret", str(secret))
    assert (code, ending.reason) == (70, "Internal")


# --- hf --------------------------------------------------------------------------------------------------------------


class Hub(Handler):
    """Answers with parts of files, as the Hub does."""

    def file(self, body: bytes, cut: int = 0, **headers: str) -> None:
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        self.send(206, body[int(first) : int(last) + 1], headers)


@pytest.fixture
def hub() -> Iterator[Server]:
    """A server that speaks as much of the Hub's API as a look at a model needs."""
    repositories = {"org/base": SPLIT, "org/private": WHOLE, "org/pickled": {**WHOLE, "model.safetensors": b""}}

    def answer(handler: Handler) -> None:
        parts = unquote(urlsplit(handler.path).path).strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        private = "private" in name and handler.headers.get("Authorization") != "Bearer hf_ours"
        if name not in repositories or private:
            handler.send(401, headers={"X-Error-Code": "RepoNotFound"})
        elif parts[0] == "api":
            if parts[-1] not in ("main", "v1"):
                handler.send(404, headers={"X-Error-Code": "RevisionNotFound"})
                return
            items = [
                {"type": "file", "path": n, "size": len(d), "oid": "0"} for n, d in repositories[name].items() if d
            ]
            handler.send(200, json.dumps(items).encode(), {"Content-Type": "application/json"})
        else:
            data = repositories[name]["/".join(parts[4:])]
            handler.file(data, ETag=f'"{hashlib.sha256(data).hexdigest()}"')

    with Server(("127.0.0.1", 0), Hub) as one:
        one.seen, one.answer = [], answer
        thread = threading.Thread(target=one.serve_forever, args=(0.02,))
        thread.start()
        yield one
        one.shutdown()
        thread.join()


def hub_run(hub: Server, log: Path, uri: str, *more: str) -> subprocess.CompletedProcess[str]:
    home = str(log.parent / "home")
    arguments = ("--model", uri, "--termination-log", str(log), *more)
    return run(*arguments, HF_ENDPOINT=f"http://{hub.address}", HF_HOME=home, HF_HUB_OFFLINE="0")


def test_of_a_hub_only_headers_are_read(hub, log):
    done = hub_run(hub, log, "hf://org/base@v1")
    assert done.returncode == 0, done.stderr
    found = Inspection.model_validate_json(log.read_bytes())
    assert found.facts
    assert found.facts.parameters == PARAMETERS
    files = [(path, headers["range"]) for path, headers in hub.seen if "resolve" in path]
    assert ("/org/base/resolve/v1/model-00001-of-00002.safetensors", "bytes=0-131071") in files
    assert not any("consolidated" in path or "README" in path for path, _ in files)
    assert not any("not-ours" in str(headers) for _, headers in hub.seen), "only the Secret's token is sent"


def test_tokens_of_a_hub_come_from_the_secret(hub, log, tmp_path):
    done = hub_run(hub, log, "hf://org/private")
    assert done.returncode == 66
    assert "name a Secret with a token" in Ending.model_validate_json(log.read_bytes()).message
    secret = put(tmp_path / "secret", {"token": b"hf_ours\n"})
    done = hub_run(hub, log, "hf://org/private", "--secret", str(secret))
    assert done.returncode == 0, done.stderr
    assert "hf_ours" not in done.stdout + done.stderr + log.read_text()


@pytest.mark.parametrize(
    ("uri", "code", "words"),
    [
        ("hf://org/base@v9", 66, "hf://org/base@v9: there is no revision v9"),
        ("hf://org/none", 66, "hf://org/none: there is no such model"),
        ("hf://org/pickled", 66, "Convert pickled weights"),
    ],
)
def test_errors_of_a_hub_say_what_to_do(hub, log, uri, code, words):
    done = hub_run(hub, log, uri)
    ending = Ending.model_validate_json(log.read_bytes())
    assert (done.returncode, ending.reason) == (code, "ModelError"), done.stderr
    assert words in ending.message
    assert len(log.read_bytes()) < 4096
