"""Requests become FineTuneJobs, and these become OpenAI's objects."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError
from tunesmith.client.checking import check
from tunesmith.client.resources import FineTuneJob
from tunesmith.openai_api import catalog, graders, objects, rows
from tunesmith.openai_api.catalog import Base
from tunesmith.openai_api.errors import ApiRefusal, of_validation
from tunesmith.openai_api.requests import (
    CANCELLED_ANNOTATION,
    MADE_LABEL,
    REQUEST_ANNOTATION,
    CreateJob,
    Inputs,
    job_body,
    job_name,
)

BASE = Base(uri="hf://org/small", secret="hub", spec={"training": {"learningRate": 2e-4, "microBatchSize": 4}})
INPUTS = Inputs("pvc://store/openai/a.jsonl", "pvc://store/openai/b.jsonl", "pvc://store/openai/c.py")
ASKED: dict[str, Any] = {"model": "small", "training_file": "file-1"}
CHECK = {
    "type": "string_check",
    "name": "same",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "{{ item.solution }}",
}
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "implied": ({}, {"type": "SFT"}),
    "supervised": ({"method": {"type": "supervised"}}, {"type": "SFT"}),
    "dpo": (
        {"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.3}}}},
        {"type": "DPO", "dpo": {"beta": 0.3}},
    ),
    "reinforcement": (
        {"method": {"type": "reinforcement", "reinforcement": {"grader": CHECK}}},
        {"type": "GRPO", "grpo": {"rewards": [{"type": "Python", "python": {"uri": INPUTS.reward}}]}},
    ),
}


def body(**more: Any) -> dict[str, Any]:
    return job_body(CreateJob.model_validate({**ASKED, **more}), BASE, INPUTS, "ftjob-1", 7)


def live(status: dict[str, Any] | None = None, annotations: dict[str, str] | None = None, **more: Any) -> FineTuneJob:
    made = body(**more)
    made["metadata"] |= {"namespace": "team", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
    made["metadata"]["annotations"] |= annotations or {}
    return FineTuneJob.model_validate({**made, "status": status or {}})


def condition(status: str, reason: str, message: str = "", type_: str = "Succeeded") -> dict[str, Any]:
    return {
        "type": type_, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": "2026-01-01T01:00:00Z", "observedGeneration": 1,
    }  # fmt: skip


@pytest.mark.parametrize(("more", "method"), METHODS.values(), ids=METHODS)
def test_every_method_becomes_a_job_that_the_kinds_schema_takes(more: dict[str, Any], method: dict[str, Any]) -> None:
    made = body(validation_file="file-2", **more)
    check(made)
    assert made["spec"]["method"] == method
    assert made["spec"]["model"] == {"uri": "hf://org/small", "secretRef": {"name": "hub"}}
    assert made["spec"]["datasets"] == [{"uri": INPUTS.training}]
    assert made["spec"]["validation"] == {"datasets": [{"uri": INPUTS.validation}]}
    assert objects.came_this_way(FineTuneJob.model_validate(made))


def test_hyperparameters_change_the_tables_defaults() -> None:
    wanted = {"n_epochs": 3, "batch_size": 6, "learning_rate_multiplier": 0.5}
    made = body(hyperparameters=wanted, seed=11)["spec"]["training"]
    # The micro-batch still divides the batch.
    assert made == {"epochs": 3, "globalBatchSize": 6, "microBatchSize": 2, "learningRate": 1e-4, "seed": 11}
    auto = body(hyperparameters=dict.fromkeys(wanted, "auto"))["spec"]["training"]
    assert auto == {**BASE.spec["training"], "seed": 7}


@pytest.mark.parametrize(("tuner", "rate"), [("LoRA", 2e-4), ("Full", 2e-5)])
def test_the_multiplier_is_of_the_trainers_own_default(tuner: str, rate: float) -> None:
    base = Base(uri="hf://org/small", spec={"tuner": {"type": tuner}})
    request = CreateJob.model_validate({**ASKED, "hyperparameters": {"learning_rate_multiplier": 2}})
    made = job_body(request, base, INPUTS, "x", 1)
    assert made["spec"]["training"]["learningRate"] == pytest.approx(rate)


@pytest.mark.parametrize(
    ("more", "message", "param"),
    [
        ({"bogus": 1}, "Unrecognized request argument supplied: bogus", "bogus"),
        ({"training_file": None}, "training_file", "training_file"),
        ({"hyperparameters": {"n_epochs": 0}}, "n_epochs", "hyperparameters.n_epochs"),
        ({"method": {"type": "reinforcement"}}, "needs reinforcement.grader", "method"),
        ({"method": {"type": "supervised", "dpo": {}}}, "dpo is only for type dpo", "method"),
        ({"integrations": [{"type": "wandb"}]}, "integrations", "integrations"),
        ({"metadata": {"k": "v" * 513}}, "512", "metadata.k"),
    ],
)
def test_a_bad_request_is_refused_by_its_parameter(more: dict[str, Any], message: str, param: str) -> None:
    with pytest.raises(ValidationError) as caught:
        CreateJob.model_validate({**ASKED, **more})
    error = of_validation(caught.value).body["error"]
    assert message in error["message"] + str(error["param"])
    assert error["type"] == "invalid_request_error"
    assert str(error["param"]).startswith(param)


def test_the_suffix_is_part_of_the_models_name() -> None:
    assert job_name("My Bot! v2", "abc") == "ftjob-abc-my-bot-v2"
    assert job_name(None, "abc") == "ftjob-abc"
    assert len(job_name("x" * 64, "0123456789ab")) <= 43


@pytest.mark.parametrize(
    ("found", "word"),
    [
        ([], "validating_files"),
        ([condition("Unknown", "Inspecting")], "validating_files"),
        ([condition("Unknown", "Queued")], "queued"),
        ([condition("Unknown", "Suspended")], "queued"),
        ([condition("Unknown", "Running")], "running"),
        ([condition("Unknown", "Restarting")], "running"),
        ([condition("True", "Completed")], "succeeded"),
        ([condition("False", "DataError", "row 3")], "failed"),
    ],
)
def test_conditions_are_openais_statuses(found: list[dict[str, Any]], word: str) -> None:
    said = objects.job_object(live({"conditions": found}))
    assert said["status"] == word
    assert said["fine_tuned_model"] == ("ftjob-1" if word == "succeeded" else None)
    failed = {"code": "DataError", "message": "row 3", "param": "training_file"}
    assert said["error"] == (failed if word == "failed" else None)


def test_a_cancelled_job_is_cancelled_unless_it_ended_before() -> None:
    mark = {CANCELLED_ANNOTATION: "2026-01-01T02:00:00Z"}
    said = objects.job_object(live({"conditions": [condition("Unknown", "Suspended")]}, mark))
    assert (said["status"], said["finished_at"]) == ("cancelled", 1767232800)
    assert objects.status_of(live({"conditions": [condition("True", "Completed")]}, mark)) == "succeeded"


def test_events_tell_the_attempts_and_are_the_same_each_time() -> None:
    status = {
        "conditions": [condition("False", "OutOfMemory", "too large")],
        "attempts": [
            {"number": 1, "nodes": 2, "startTime": "2026-01-01T00:10:00Z", "endTime": "2026-01-01T00:20:00Z",
             "reason": "PeerLost", "message": "gone"},
            {"number": 2, "nodes": 1, "startTime": "2026-01-01T00:21:00Z", "resumedStep": 5},
        ],
        "checkpoint": {"step": 5, "uri": "pvc://s/c/5", "time": "2026-01-01T00:15:00Z"},
        "progress": {"step": 7, "totalSteps": 9, "percent": 77, "loss": 0.5, "updated": "2026-01-01T00:30:00Z"},
    }  # fmt: skip
    found = objects.events(live(status))
    assert [one["message"] for one in found] == [
        "OutOfMemory: too large",
        "Step 7/9: training loss=0.5",
        "Attempt 2 began on 1 node, from the checkpoint of step 5",
        "Attempt 1 ended: PeerLost: gone",
        "Checkpoint of step 5 written",
        "Attempt 1 began on 2 nodes",
        "Created fine-tuning job: ftjob-1",
    ]
    assert [one["level"] for one in found][:4] == ["error", "info", "info", "warn"]
    assert found[1]["data"] == {"step": 7, "total_steps": 9, "train_loss": 0.5}
    assert found == objects.events(live(status))
    assert len({one["id"] for one in found}) == len(found)
    [checkpoint] = objects.checkpoints(live(status))
    assert (checkpoint["step_number"], checkpoint["fine_tuned_model_checkpoint"]) == (5, "pvc://s/c/5")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": 1}', '{"model": "m", "training_file": "f"}'])
def test_a_job_whose_request_was_changed_is_none_of_ours(text: str) -> None:
    assert not objects.came_this_way(live(annotations={REQUEST_ANNOTATION: text}))
    made = body()
    made["metadata"]["labels"].pop(MADE_LABEL)
    assert not objects.came_this_way(FineTuneJob.model_validate(made))


@pytest.mark.parametrize(("time", "fits"), [("2026-01-01T02:00:00Z", True), ("yes", False), ("", False)])
def test_one_job_whose_mark_was_changed_by_hand_hides_no_other(time: str, fits: bool) -> None:
    assert objects.came_this_way(live(annotations={CANCELLED_ANNOTATION: time})) is fits


def test_pages_follow_one_another() -> None:
    items = [{"id": str(number)} for number in range(5)]
    first = objects.page(items, None, 2)
    assert ([one["id"] for one in first["data"]], first["has_more"], first["last_id"]) == (["0", "1"], True, "1")
    last = objects.page(items, "3", 2)
    assert ([one["id"] for one in last["data"]], last["has_more"]) == (["4"], False)
    with pytest.raises(ApiRefusal, match="No such object: 9"):
        objects.page(items, "9", 2)


def turn(role: str, content: Any = "x") -> dict[str, Any]:
    return {"role": role, "content": content}


CHAT = {"messages": [turn("user"), turn("assistant")]}
PREFERENCE = {
    "input": {"messages": [turn("user", "q")], "tools": [{"type": "function"}]},
    "preferred_output": [turn("assistant", "good")],
    "non_preferred_output": [turn("assistant", "bad")],
}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([b"nonsense"], "Line 1 is not a dictionary"),
        ([b""], "empty"),
        ([b"[1]"], "Line 1 is not a dictionary"),
        ([b"[" * 100_000], "Line 1 is not a dictionary"),
        ([b'{"messages": [{"role": "user", "content": "\xff"}]}'], "Line 1 is not a dictionary"),
        ([json.dumps({"messages": [turn("user", "\ud800")]}).encode()], "Line 1 has half a character"),
        ([json.dumps({"text": "x"}).encode()], "Line 1 is no training example"),
        ([json.dumps(CHAT).encode(), json.dumps(PREFERENCE).encode()], "Line 2 has another format"),
        ([json.dumps({"messages": [turn("boss"), turn("assistant")]}).encode()], "'messages[0].role' must be one of"),
        ([json.dumps({"messages": [turn("assistant", 3)]}).encode()], "'messages[0].content' must be text"),
        ([json.dumps({"messages": [{**turn("assistant"), "weight": 0}]}).encode()], "cannot be weighed"),
        ([json.dumps({**PREFERENCE, "input": {}}).encode()], "'input.messages' must be a list"),
        ([json.dumps({**PREFERENCE, "preferred_output": [turn("user")]}).encode()], "of the assistant only"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(lines: list[bytes], message: str) -> None:
    with pytest.raises(ApiRefusal) as caught:
        rows.check(lines)
    assert message in caught.value.message
    assert caught.value.body["error"]["code"] == "invalid_file"


def test_preferences_are_converted_and_other_rows_are_not() -> None:
    assert rows.check([json.dumps(PREFERENCE).encode(), b" \n", json.dumps(PREFERENCE).encode()]) == ("preference", 2)
    assert rows.converted(PREFERENCE) == {
        "chosen": [turn("user", "q"), turn("assistant", "good")],
        "rejected": [turn("user", "q"), turn("assistant", "bad")],
        "tools": [{"type": "function"}],
    }
    assert rows.converted(CHAT) is CHAT
    assert rows.check([json.dumps({"messages": [turn("user")], "solution": "4"}).encode()]) == ("prompts", 1)


@pytest.mark.parametrize(
    ("operation", "reference", "wanted"),
    [
        ("eq", "{{item.solution}}", [1.0, 0.0]),
        ("ne", "{{item.solution}}", [0.0, 1.0]),
        ("like", "{{item.solution}}", [1.0, 0.0]),
        ("ilike", "FOUR", [0.0, 1.0]),
        ("eq", 'it\'s "4" \\ {{item.more.deep}}', [0.0, 0.0]),
    ],
)
def test_a_text_grader_becomes_a_reward_function(operation: str, reference: str, wanted: list[float]) -> None:
    grader = graders.StringCheck(**{**CHECK, "operation": operation, "reference": reference})
    names: dict[str, Any] = {}
    exec(graders.reward_file(grader), names)
    found = names["reward"](["4", "is four"], solution=["4", "5"], prompts=["a", "b"], more=[{"deep": 1}, {"deep": 2}])
    assert found == wanted


def test_a_graders_own_python_is_called_for_each_answer() -> None:
    source = "def grade(sample, item):\n    return (sample['output_json'] or {}).get('n', 0) * item['weight']"
    names: dict[str, Any] = {}
    exec(graders.reward_file(graders.PythonGrader(type="python", name="own", source=source)), names)
    assert names["reward"](['{"n": 2}', "no json"], weight=[3, 3]) == [6.0, 0.0]


def test_a_table_that_no_job_could_come_of_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "models.yaml"
    for text, word in (
        ("x: {uri: hf://a/b, spec: {tuner: {ranc: 4}}}", "did you mean rank"),
        ("x: {uri: hf://a/b, spec: {method: {type: SFT}}}", "decided by each request"),
        ("x: {url: hf://a/b}", "url"),
        ("x: {uri: nonsense}", "spec.model.uri"),
    ):
        path.write_text(text)
        with pytest.raises(Exception, match=word):
            catalog.load(path)
