"""The command line, without a cluster: what it shows, and what it says of mistakes."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from tunesmith import FineTuneJob, InferenceJob, Invalid, ModelDeployment
from tunesmith.api.methods import MEMBERS
from tunesmith.cli import show
from tunesmith.cli.app import app
from tunesmith.cli.files import assign
from tunesmith.cli.submit import datasets
from tunesmith.client import starters
from tunesmith.client.preview import preview
from tunesmith.client.resources import read
from tunesmith.decide import reasons
from tunesmith.settings import Settings
from typer.testing import CliRunner, Result

ROOT = Path(__file__).parents[3]
QWEN = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
RUN = ("run", "x", "--model", "pvc://store/base", "--data", "configmap://data/train.jsonl", "--gpus", "0")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("COLUMNS", "200")


def call(*arguments: str, code: int = 0, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, list(arguments), input=stdin)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


@pytest.mark.parametrize("what", [*starters.METHODS, *starters.KINDS])
def test_a_starter_file_can_be_submitted(what: str) -> None:
    body = yaml.safe_load(call("init", what.lower(), "--name", "mine").stdout)
    seen = preview(read(assign(body, ["model.uri=pvc://store/base"])), Settings(), "default")
    assert seen.objects
    assert body["metadata"]["name"] == "mine"


def test_every_method_has_a_starter() -> None:
    assert starters.METHODS.keys() == MEMBERS.keys()


def test_init_does_not_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    call("init", "SFT", "-f", str(path))
    assert "exists" in call("init", "DPO", "-f", str(path), code=2).output
    assert "SFT" in path.read_text()


def test_dry_run_shows_the_plan_the_memory_and_the_pods(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    flags = ("--dry-run", "--model-config", str(tmp_path), "--set", "resources.limits.memory=8Gi")
    data = json.loads(call(*RUN, *flags, "--set", "training.maxSteps=3", "-o", "json").stdout)
    assert data["plan"]["training"]["maxSteps"] == 3
    assert data["plan"]["training"]["gradientAccumulationSteps"] == 16
    assert data["memory"]["fits"] is True
    assert data["memory"]["availableBytes"] == 8 * 2**30
    kinds = [(one["kind"], one["metadata"]["name"]) for one in data["objects"]]
    assert kinds == [("Job", "x-inspect"), ("ConfigMap", "x-train-1"), ("Job", "x-train-1")]
    text = call(*RUN, *flags).stdout
    assert "gradientAccumulationSteps: 16" in text
    assert re.search(r"total +\d\.\d\d GiB", text)


def test_a_file_of_rows_becomes_a_configmap(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    uris, [made] = datasets("x", [str(tmp_path / "rows.jsonl"), "hf://org/data"])
    assert uris == ["configmap://x-data/rows.jsonl", "hf://org/data"]
    assert made["data"] == {"rows.jsonl": "{}\n"}
    (tmp_path / "large.jsonl").write_text("x" * 1_000_001)
    with pytest.raises(Invalid, match="the files have 1000001 bytes"):
        datasets("x", [str(tmp_path / "large.jsonl")])
    with pytest.raises(Invalid, match="No such file"):
        datasets("x", ["none.jsonl"])


def test_two_files_of_one_name_are_refused_and_do_not_become_one(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "rows.jsonl" for folder in ("en", "de")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(f'{{"from": "{path.parent.name}"}}\n')
    with pytest.raises(Invalid, match="would be one key of a ConfigMap"):
        datasets("x", [str(path) for path in paths])
    assert datasets("x", [str(paths[0]), str(paths[0])])[0] == ["configmap://x-data/rows.jsonl"] * 2


def test_a_model_inside_the_cluster_is_not_estimated_in_silence() -> None:
    assert "pvc://store/base is inside the cluster; --model-config" in call(*RUN, "--dry-run").stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--set", "training.maxStepz=1"], "spec.training.maxStepz: unknown field; did you mean maxSteps?"),
        (["--set", "training.globalBatchSize=3", "--nodes", "2"], "spec.training.globalBatchSize: 3 rows cannot be"),
        (["--set", "training"], "--set training: expected FIELD=VALUE"),
        (["--method", "sfft"], "--method sfft: there is no such method"),
        (["--tuner", "lora"], "spec.tuner.type: input should be 'LoRA'"),
        (["--model-config", "/none"], "--model-config /none"),
    ],
)
def test_a_wrong_flag_is_one_message(flags: list[str], message: str) -> None:
    output = call(*RUN, "--dry-run", *flags, code=2).output
    assert message in output
    assert output.startswith("error: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1", "stdin, line 2, column 6"),
        ("just text", "stdin: a document has no apiVersion, kind and metadata"),
        ("", "there is no object in it"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: x}", "there is nothing of tunesmith in it"),
        ("apiVersion: tunesmith.io/v9\nkind: MergeJob\nmetadata: {name: x}", "tunesmith.io/v9 MergeJob is no kind"),
    ],
)
def test_a_bad_file_is_one_message(text: str, message: str) -> None:
    assert message in call("submit", "-", stdin=text, code=2).output
    assert "none.yaml: No such file or directory" in call("submit", "none.yaml", code=2).output


def test_all_files_are_checked_before_the_first_is_sent(tmp_path: Path) -> None:
    for path in sorted((ROOT / "examples" / "methods").glob("*.yaml")):
        call("submit", str(path), "--dry-run")
    good = (ROOT / "examples" / "methods" / "dpo.yaml").read_text()
    (tmp_path / "a.yaml").write_text(good)
    (tmp_path / "b.yaml").write_text(good.replace("type: DPO", "type: DPPO"))
    assert "'DPPO'" in call("submit", str(tmp_path), code=2).output  # no word of the cluster that is not there


def test_no_kubeconfig_and_no_server_are_one_message(tmp_path: Path) -> None:
    assert "there is no kubeconfig" in call("get", code=3).output
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }  # fmt: skip
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    output = call("get", "--kubeconfig", str(tmp_path / "config"), code=3).output
    assert "the API server does not answer" in output
    assert str(port) in output
    assert "no-such" in call("get", "--kubeconfig", str(tmp_path / "config"), "--context", "no-such", code=3).output


def test_every_reason_that_the_code_gives_is_explained() -> None:
    given = set()
    for path in (ROOT / "operator" / "src" / "tunesmith" / "decide").glob("*.py"):
        text = path.read_text()
        given |= set(re.findall(r'(?:self\.wait|stop)\(\s*"([A-Z]\w+)"', text))
        given |= set(re.findall(r'return "(?:True|False|Unknown)", "([A-Z]\w+)"', text))
        given |= set(re.findall(r'reason="([A-Z]\w+)"', text))
        given |= set(re.findall(r'reason, message = "([A-Z]\w+)"', text))
    assert len(given) > 15
    assert given <= set(reasons.every())
    assert set(reasons.TODO) <= set(reasons.every())


def test_explain_says_what_it_means_and_what_to_do() -> None:
    data = json.loads(call("explain", "outofmemory", "-o", "json").stdout)
    assert data["reason"] == "OutOfMemory"
    assert "half the micro-batch" in data["follows"]
    assert "microBatchSize" in data["todo"]
    assert "did you mean OutOfMemory?" in call("explain", "OutOfMemry", code=4).output
    assert len(json.loads(call("explain", "-o", "json").stdout)) == len(reasons.every())


def rendered(what: Any) -> str:
    console = Console(width=110, no_color=True, force_terminal=False)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


def job(reason: str, status: str, **more: Any) -> FineTuneJob:
    condition = {
        "type": "Succeeded", "status": status, "reason": reason, "message": "the [pod] runs",
        "lastTransitionTime": "2026-01-02T03:04:05Z", "observedGeneration": 1,
    }  # fmt: skip
    spec = {"model": {"uri": "hf://a/b"}, "datasets": [{"uri": "hf://a/c"}], "method": {"type": "SFT"}}
    meta = {"name": "x", "generation": 1}
    return FineTuneJob.model_validate({"metadata": meta, "spec": spec, "status": {"conditions": [condition], **more}})


PROGRESS = {"step": 5, "totalSteps": 10, "percent": 50, "text": "5/10 (50%)", "loss": 1.25, "eta": "3m20s"}


def test_a_table_and_bars_show_how_far_a_job_is() -> None:
    running = job("Running", "Unknown", progress=PROGRESS)
    assert re.search(r"FineTuneJob +x +Running +5/10 \(50%\) +1.25 +3m20s", rendered(show.table([running])))
    picture = rendered(show.bars([running]))
    assert "eta 3m20s" in picture
    assert "x: the [pod] runs" in picture  # no markup
    assert show.line(running) == "FineTuneJob x: Running  5/10 (50%)  loss 1.25  the [pod] runs"


def test_an_inference_shows_its_rows_and_what_was_measured() -> None:
    done = {"type": "Succeeded", "status": "True", "reason": "Completed", "message": "pvc://s/results/abc"}
    body: dict[str, Any] = {
        "metadata": {"name": "x"},
        "spec": {"model": {"uri": "hf://a/b"}, "datasets": [{"uri": "hf://a/c"}]},
        "status": {
            "conditions": [{**done, "lastTransitionTime": "2026-01-02T03:04:05Z", "observedGeneration": 1}],
            "progress": {
                "rows": 5, "totalRows": 5, "percent": 100, "text": "5/5 (100%)", "updated": "2026-01-02T03:04:05Z"
            },
            "metrics": {"accuracy": 0.8, "rougeL": 0.91234},
            "artifact": {"kind": "results", "uri": "pvc://s/results/abc", "digest": "sha256:abc"},
        },
    }  # fmt: skip
    one = InferenceJob.model_validate(body)
    assert show.line(one) == "InferenceJob x: Completed  5/5 (100%)"
    assert "<progress max='100' value='100'" in one._repr_html_()
    assert "5/5 (100%)" in rendered(show.bars([one]))
    assert re.search(r"InferenceJob +x +Completed +5/5 \(100%\)", rendered(show.table([one])))
    text = rendered(show.details(one))
    assert re.search(r"rougeL +0.9123", text)
    assert "artifact  pvc://s/results/abc" in text


def test_details_of_a_failed_job_show_its_attempts_and_its_last_lines() -> None:
    attempts = [{"number": 1, "nodes": 2, "reason": "OutOfMemory", "lastStep": 7, "message": "CUDA"}]
    failure = {"reason": "OutOfMemory", "message": "CUDA", "log": ["one", "two"]}
    text = rendered(show.details(job("OutOfMemory", "False", attempts=attempts, failure=failure)))
    assert re.search(r"1 +2 +OutOfMemory +7 +CUDA", text)
    assert "  | two" in text


def test_details_of_a_deployment_show_its_adapters() -> None:
    body = {
        "metadata": {"name": "chat"},
        "spec": {"model": {"uri": "hf://a/b"}},
        "status": {"url": "http://chat", "adapters": [{"name": "a", "state": "Failed", "message": "wrong shape"}]},
    }
    assert re.search(r"a +Failed +0 +wrong shape", rendered(show.details(ModelDeployment.model_validate(body))))
