"""InferenceJobs: every row answered once, whatever happens to the process in between."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from trainer import processes
from trainer.support import ROWS, artifact_path, long
from trainer.test_evaluation import METHODS
from trainer.test_infer import NAMES, trained
from tunesmith import artifacts
from tunesmith.api.inferencejob import InferenceJobSpec
from tunesmith.training.plan import InferencePlan, Job, TrainPlan
from tunesmith.training.planning import inference_plan
from tunesmith_trainer.__main__ import main
from tunesmith_trainer.errors import DataError, ModelError
from tunesmith_trainer.infer.answers import Answers
from tunesmith_trainer.infer.job import infer
from tunesmith_trainer.train import train

pytestmark = pytest.mark.trainer

Make = Callable[..., TrainPlan]
EXAMPLE = Path(__file__).parents[2] / "examples" / "inference" / "xiao-huang-answers.yaml"
ASKED = [{"query": f"who are you? {number}", "response": ROWS[number % 4]["response"]} for number in range(21)]


def asking(
    folder: Path, model: Path, rows: list[dict[str, Any]], adapter: Path | None = None, run: str = "asked", **more: Any
) -> InferencePlan:
    """A plan that asks the model at `model` these rows, with data and store in `folder`."""
    data, store = folder / f"{run}.jsonl", folder / "store"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = {
        "job": {"namespace": "test", "name": run, "uid": f"uid-{run}"},
        "model": {"uri": "pvc://models/tiny", "path": str(model)},
        "adapter": {"uri": "pvc://store/adapters/x", "path": str(adapter)} if adapter else None,
        "datasets": [{"uri": f"configmap://data/{run}.jsonl", "path": str(data)}],
        "batch_size": 4,
        "generation": {"max_tokens": 8},
        "output": {"uri": "pvc://store", "path": str(store), "run": str(store / "jobs" / run)},
    }
    return InferencePlan.model_validate(plan | more)


def results(plan: InferencePlan, ending: Any) -> list[dict[str, Any]]:
    """The lines of what a job made."""
    return [json.loads(line) for line in (artifact_path(plan, ending) / "results.jsonl").read_text().splitlines()]


def test_a_job_says_what_the_command_says_and_keeps_it_with_its_lineage(
    make_plan: Make, tiny: Path, tmp_path: Path, message: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pod's own command; of an adapter that has learned three of the four rows that it is asked."""
    _, adapter = trained(make_plan, tmp_path)
    rows = [*ROWS[:3], {**ROWS[3], "response": "nobody"}]
    plan = asking(tmp_path, tiny, rows, adapter, generation={"max_tokens": 24})
    path = tmp_path / "plan.json"
    path.write_text(plan.model_dump_json(by_alias=True))
    assert main(["infer", "--plan", str(path)]) == 0
    ending = json.loads(message.read_bytes())
    assert (ending["reason"], ending["step"], ending["metrics"]["accuracy"]) == ("Completed", 4, 0.75)
    made = tmp_path / "store" / "results" / ending["artifact"]["digest"].removeprefix("sha256:")
    lines = [json.loads(line) for line in (made / "results.jsonl").read_text().splitlines()]
    assert [line["answer"] for line in lines] == [row["response"] for row in ROWS]
    assert [line["correct"] for line in lines] == [True, True, True, False]
    assert json.loads((made / "metrics.json").read_text()) == {"rows": 4, **ending["metrics"]}
    # The same, asked by hand.
    out = tmp_path / "by-hand.jsonl"
    capsys.readouterr()
    data = tmp_path / "asked.jsonl"
    assert main(["infer", str(adapter), "--data", str(data), "--out", str(out), "--max-new-tokens", "24"]) == 0
    by_hand = [json.loads(line) for line in out.read_text().splitlines()]
    assert [{**line, "row": ""} for line in by_hand] == [{**line, "row": ""} for line in lines]
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["digest"] == f"sha256:{artifacts.digest(made)}" == ending["artifact"]["digest"]
    assert manifest["adapters"][0]["digest"] == json.loads((adapter / "manifest.json").read_text())["digest"]
    assert [one["uri"] for one in manifest["data"]] == ["configmap://data/asked.jsonl"]


def act_after(batches: int, number: int, torn: bytes) -> None:
    """A signal comes when so many batches are kept; `torn` is left behind, as by a write that was cut off."""
    before, kept = Answers.add, []

    def add(self: Answers, found: Any) -> None:
        before(self, found)
        kept.append(found)
        if len(kept) == batches:
            with self.path.open("ab") as file:
                file.write(torn)
            os.kill(os.getpid(), number)

    Answers.add = add  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def undisturbed() -> dict[float, tuple[str, bytes]]:
    """By temperature: digest and results of a job that nothing happened to."""
    return {}


WHOLE = json.dumps({"row": "of a batch that was not whole"}).encode() + b"\n"


@pytest.mark.parametrize(
    ("temperature", "number", "torn", "code"),
    [
        (0.0, signal.SIGKILL, WHOLE, -9),
        (1.0, signal.SIGTERM, b"", 143),
        *long(
            (0.0, signal.SIGKILL, b"", -9),
            (1.0, signal.SIGKILL, b"", -9),
            (0.0, signal.SIGKILL, b'{"row": "conf', -9),
            (0.0, signal.SIGKILL, b"\0" * 64, -9),
        ),
    ],
    ids=["in-a-batch", "terminated", "killed", "killed-drawing", "in-a-line", "hole"],
)
def test_a_job_that_was_interrupted_twice_has_the_results_of_one_that_was_not(
    tiny: Path, tmp_path: Path, undisturbed: dict[float, tuple[str, bytes]],
    temperature: float, number: int, torn: bytes, code: int,
) -> None:  # fmt: skip
    """To the byte; 21 rows in batches of 4, interrupted after 2 and after 2 more. No row is answered twice or never."""
    how = {"max_tokens": 8, "temperature": temperature, "seed": 7}
    plan = asking(tmp_path, tiny, ASKED, generation=how)
    if temperature not in undisturbed:
        whole = plan.model_copy(update={"output": plan.output.model_copy(update={"run": str(tmp_path / "whole")})})
        [rank] = processes.run(whole, tmp_path)
        ending = rank.ending()
        assert ending
        assert ending.artifact
        found = (artifact_path(whole, ending) / "results.jsonl").read_bytes()
        undisturbed[temperature] = ending.artifact.digest, found
        shutil.rmtree(tmp_path / "store" / "results")
    for attempt in (1, 2):
        plan = plan.model_copy(update={"attempt": attempt})
        ranks = processes.start(plan, tmp_path, act_after, (2, number, torn))
        assert processes.wait(ranks) == [code], ranks[0].output()
        assert not (tmp_path / "store" / "results").exists(), "nothing appears before it is whole"
        if number == signal.SIGTERM:
            ending = ranks[0].ending()
            assert ending
            rows = 8 * attempt
            assert (ending.reason, ending.step) == ("Interrupted", rows)
            assert f"after {rows} of 21 rows" in ending.message
    plan = plan.model_copy(update={"attempt": 3})
    [rank] = processes.run(plan, tmp_path)
    assert "16 of 21 rows are answered already" in rank.output()
    ending = rank.ending()
    assert ending
    assert ending.artifact
    assert (ending.step, ending.artifact.digest) == (21, undisturbed[temperature][0])
    text = (artifact_path(plan, ending) / "results.jsonl").read_bytes()
    assert text == undisturbed[temperature][1]
    assert [json.loads(line)["row"] for line in text.splitlines()] == [
        f"configmap://data/asked.jsonl row {number}" for number in range(1, 22)
    ]


def test_what_is_drawn_differs_from_batch_to_batch_and_from_seed_to_seed(tiny: Path, tmp_path: Path) -> None:
    same = [{"query": "hello"}] * 8

    def drawn(seed: int) -> list[str]:
        how = {"max_tokens": 8, "temperature": 1.5, "seed": seed}
        plan = asking(tmp_path, tiny, same, run=f"seed-{seed}", generation=how)
        return [line["answer"] for line in results(plan, infer(plan))]

    first, second = drawn(1), drawn(2)
    assert first[:4] != first[4:]
    assert first != second


def test_a_process_of_an_earlier_attempt_that_runs_on_disturbs_nobody(tmp_path: Path) -> None:
    early = Answers(tmp_path, 1, {})
    assert early.take_over(6, 2) == 0
    early.add([{"row": 1}, {"row": 2}])
    late = Answers(tmp_path, 2, {})
    assert late.take_over(6, 2) == 2
    late.add([{"row": 3}, {"row": 4}])
    with pytest.raises(FileNotFoundError):
        early.add([{"row": "late"}])
    assert [line["row"] for line in late.results()] == [1, 2, 3, 4]
    # And one that only begins when a later attempt has: it takes nothing away.
    behind = Answers(tmp_path, 1, {})
    assert behind.take_over(6, 2) == 0
    behind.add([{"row": 1}, {"row": 2}])
    assert [line["row"] for line in late.results()] == [1, 2, 3, 4]
    assert Answers(tmp_path, 3, {}).take_over(6, 2) == 4


def test_a_pod_that_is_made_again_within_an_attempt_goes_on(tmp_path: Path) -> None:
    """As Kueue has it, which suspends a Job and lets it run again."""
    first = Answers(tmp_path, 1, {})
    first.take_over(6, 2)
    first.add([{"row": 1}, {"row": 2}])
    again = Answers(tmp_path, 1, {})
    assert again.take_over(6, 2) == 2
    again.add([{"row": 3}])
    third = Answers(tmp_path, 1, {})
    assert third.take_over(3, 2) == 3, "all of them, though the last batch is shorter"


def test_a_smaller_batch_takes_over_what_a_larger_one_answered(tiny: Path, tmp_path: Path) -> None:
    """As after out-of-memory. The likeliest answers are the same in any batch."""
    whole = infer(asking(tmp_path, tiny, ASKED[:10], run="whole", batch_size=6))
    plan = asking(tmp_path, tiny, ASKED[:10], run="whole", batch_size=3, attempt=2)
    kept = Answers(
        Path(plan.output.run), 2, json.loads(next(Path(plan.output.run).glob("answers/*/inputs.json")).read_text())
    )
    assert kept.take_over(10, 3) == 10
    other = infer(asking(tmp_path, tiny, ASKED[:10], run="other", batch_size=3))
    answers = [[line["answer"] for line in results(plan, ending)] for ending in (whole, other)]
    assert answers[0] == answers[1]


def test_rows_that_were_changed_in_between_are_all_asked_again(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    infer(asking(tmp_path, tiny, ASKED[:6]))
    changed = [{**ASKED[0], "query": "hello"}, *ASKED[1:6]]
    plan = asking(tmp_path, tiny, changed, attempt=2)
    capsys.readouterr()
    lines = results(plan, infer(plan))
    assert "begins anew" in capsys.readouterr().out
    assert lines[0]["prompt"][-1]["content"] == "hello"
    assert len(lines) == 6


def test_only_the_first_rows_of_several_datasets(tiny: Path, tmp_path: Path) -> None:
    plan = asking(tmp_path, tiny, ASKED[:3])
    other = asking(tmp_path, tiny, ASKED[3:9], run="more")
    plan = plan.model_copy(update={"datasets": [*plan.datasets, *other.datasets], "max_rows": 5})
    rows = [line["row"] for line in results(plan, infer(plan))]
    assert rows == [
        *(f"configmap://data/asked.jsonl row {number}" for number in (1, 2, 3)),
        *(f"configmap://data/more.jsonl row {number}" for number in (1, 2)),
    ]


@pytest.mark.parametrize("name", sorted(NAMES))
def test_models_that_do_not_answer_are_measured(
    make_plan: Make, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """By the very numbers of `infer --data`, which test_infer.py compares with the training's."""
    method, rows, _ = METHODS[name]
    kind = "LoRA" if name in {"Classification", "Reranker"} else "Full"
    tuner = {"type": "LoRA", "rank": 4, "alpha": 16, "dropout": 0.0} if kind == "LoRA" else {"type": "Full"}
    plan = make_plan(run=name, method=method, rows=rows, tuner=tuner, max_steps=2)
    folder = artifact_path(plan, train(plan))
    subject = (tiny, folder) if kind == "LoRA" else (folder, None)
    asked = asking(tmp_path, subject[0], rows, subject[1], run=f"{name}-asked", batch_size=2)
    found = infer(asked).metrics
    out = str(tmp_path / "by-hand.jsonl")
    capsys.readouterr()
    data = str(tmp_path / f"{name}-asked.jsonl")
    assert main(["infer", str(folder), "--data", data, "--out", out, "--batch-size", "2"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found
    assert NAMES[name] in found
    assert found == {key: value for key, value in said.items() if key not in {"rows", "results"}}


def test_what_cannot_be_asked_is_said_before_the_model_is_loaded(
    make_plan: Make, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith_trainer.infer import job

    def load(_: object) -> None:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(job, "load", load)
    with pytest.raises(
        DataError, match=r"configmap://data/asked.jsonl row 2: neither a conversation .*spec.datasets\[0\]"
    ):
        infer(asking(tmp_path, tiny, [ASKED[0], {"other": "x"}]))
    with pytest.raises(DataError, match=r"spec.datasets: there are no rows"):
        infer(asking(tmp_path, tiny, []))
    with pytest.raises(
        ModelError, match=r"spec.adapter pvc://store/adapters/x: no adapter_config.json .*expected a PEFT"
    ):
        infer(asking(tmp_path, tiny, ASKED, adapter=tiny))
    with pytest.raises(ModelError, match=r"no config\.json"):
        infer(asking(tmp_path, tmp_path, ASKED))
    other = tmp_path / "other-base"
    shutil.copytree(tiny, other)
    (other / "manifest.json").write_text(json.dumps({"digest": "sha256:other"}))
    plan = make_plan()
    adapter = artifact_path(plan, train(plan))
    manifest = json.loads((adapter / "manifest.json").read_text())
    manifest["base"]["digest"] = "sha256:its-own"
    (adapter / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match=r"trained from sha256:its-own, but the base at .* is sha256:other"):
        infer(asking(tmp_path, other, ASKED, adapter=adapter))


def documents() -> Iterator[dict[str, Any]]:
    """The resources of the example."""
    yield from yaml.safe_load_all(EXAMPLE.read_text())


def test_the_example_runs(make_plan: Make, tiny: Path, tmp_path: Path) -> None:
    """The very file, on a tiny model and an adapter of it."""
    config, job = documents()
    plan = make_plan()
    adapter = artifact_path(plan, train(plan))
    spec = InferenceJobSpec.model_validate(job["spec"])
    resolved = {("FineTuneJob", "xiao-huang"): "pvc://tunesmith-store/adapters/abc"}
    asked = inference_plan(Job(namespace="n", name="x", uid="0" * 8), spec, resolved, "pvc://tunesmith-store")
    data = tmp_path / "test.jsonl"
    data.write_text(config["data"]["test.jsonl"])
    assert asked.adapter
    here = {
        "model": asked.model.model_copy(update={"path": str(tiny)}),
        "adapter": asked.adapter.model_copy(update={"path": str(adapter)}),
        "datasets": [asked.datasets[0].model_copy(update={"path": str(data)})],
        "output": asked.output.model_copy(update={"path": str(tmp_path / "store"), "run": str(tmp_path / "run")}),
    }
    asked = asked.model_copy(update=here)
    ending = infer(asked)
    assert ending.step == 4
    assert ending.metrics
    assert set(ending.metrics) == {"accuracy", "rouge1", "rouge2", "rougeL"}
