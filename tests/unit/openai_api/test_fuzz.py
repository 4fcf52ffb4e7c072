"""What strangers send to the fine-tuning API, at random: it is refused in OpenAI's shape or understood."""

from __future__ import annotations

import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tunesmith.client.checking import check
from tunesmith.openai_api import graders
from tunesmith.openai_api.catalog import Base
from tunesmith.openai_api.errors import ApiRefusal, of_validation
from tunesmith.openai_api.files import Files
from tunesmith.openai_api.requests import CreateJob, Inputs, job_body, job_name

BASE = Base(uri="hf://org/small", spec={"training": {"learningRate": 2e-4, "microBatchSize": 4}})
INPUTS = Inputs("pvc://store/openai/a.jsonl", "pvc://store/openai/b.jsonl", "pvc://store/openai/c.py")

TEXT = st.text(max_size=6) | st.sampled_from(
    ["\ud800", "\x00", "auto", "assistant", "{{item.a}}", "{{sample.output_text}}"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of the fields, most of which are what they should be, and now and then another one."""
    known = st.fixed_dictionaries({}, optional={name: field | JSON for name, field in fields.items()})
    return st.builds(lambda own, more: {**more, **own}, known, st.just({}) | st.dictionaries(TEXT, JSON, max_size=1))


ROLE = st.sampled_from(["system", "user", "assistant", "tool"])
MESSAGES = st.lists(some(role=ROLE, content=TEXT, weight=st.just(1), tool_calls=JSON), min_size=1, max_size=3)
ANSWER = st.lists(st.builds(lambda text: {"role": "assistant", "content": text}, TEXT), min_size=1, max_size=2)
TURNS = st.lists(st.builds(lambda role, text: {"role": role, "content": text}, ROLE, TEXT), min_size=1, max_size=3)
PREFERENCE = st.fixed_dictionaries(
    {"input": st.fixed_dictionaries({"messages": TURNS}), "preferred_output": ANSWER, "non_preferred_output": ANSWER}
)
BROKEN = some(messages=MESSAGES) | some(
    input=some(messages=MESSAGES, tools=JSON), preferred_output=ANSWER, non_preferred_output=ANSWER
)
CHAT = st.fixed_dictionaries({"messages": TURNS})


def file_of(rows: st.SearchStrategy[Any]) -> st.SearchStrategy[list[bytes]]:
    return st.lists(rows.map(lambda row: json.dumps(row).encode()), max_size=3)


FILE = file_of(CHAT) | file_of(PREFERENCE) | file_of(BROKEN | JSON) | file_of(CHAT | PREFERENCE) | st.lists(st.binary())

GRADER = some(
    type=st.sampled_from(["string_check", "python"]), name=st.just("g"), input=TEXT, reference=TEXT,
    operation=st.sampled_from(["eq", "ne", "like", "ilike"]), source=TEXT,
)  # fmt: skip
OPTIONS = some(
    n_epochs=st.integers(0, 60), batch_size=st.integers(0, 70_000), learning_rate_multiplier=st.floats(),
    beta=st.floats(0, 3),
)  # fmt: skip
METHOD = some(
    type=st.sampled_from(["supervised", "dpo", "reinforcement"]), supervised=some(hyperparameters=OPTIONS),
    dpo=some(hyperparameters=OPTIONS), reinforcement=some(hyperparameters=OPTIONS, grader=GRADER),
)  # fmt: skip
REQUEST = some(
    method=METHOD, hyperparameters=OPTIONS, suffix=TEXT, seed=st.integers(-1, 2**32), validation_file=TEXT,
    metadata=st.dictionaries(TEXT, TEXT),
).map(lambda body: {"model": "small", "training_file": "file-1", **body})  # fmt: skip


@given(FILE)
def test_an_upload_is_kept_for_the_trainer_or_refused_and_leaves_nothing(lines: list[bytes]) -> None:
    with TemporaryDirectory() as folder:
        files = Files(Path(folder))
        try:
            with files.upload() as file:
                file.write(b"\n".join(lines))
                record = files.keep(file, "rows.jsonl")
        except ApiRefusal as error:
            json.dumps(error.body)
            assert [path for path in Path(folder).rglob("*") if path.is_file()] == []
            return
        rows = [json.loads(line) for line in io.BytesIO((Path(folder) / record.data).read_bytes()) if line.strip()]
        assert len(rows) == record.rows > 0
        for row in rows:
            for name in ("chosen", "rejected") if record.form == "preference" else ("messages",):
                assert all(isinstance(message["role"], str) for message in row[name])


@given(REQUEST)
def test_a_request_becomes_a_job_that_the_kinds_schema_takes_or_is_refused(body: dict[str, Any]) -> None:
    try:
        request = CreateJob.model_validate(body)
    except ValidationError as error:
        refusal = of_validation(error)
    else:
        refusal = None
    if refusal:
        assert json.loads(json.dumps(refusal.body))["error"]["type"] == "invalid_request_error"
        return
    check(job_body(request, BASE, INPUTS, job_name(request.suffix, "0123456789ab"), 7))
    if request.chosen.reinforcement:
        graders.reward_file(request.chosen.reinforcement.grader).encode()


@given(TEXT, TEXT, st.sampled_from(["eq", "ne", "like", "ilike"]), st.text())
def test_no_text_of_a_grader_becomes_code(left: str, right: str, operation: str, answer: str) -> None:
    try:
        grader = graders.StringCheck(type="string_check", name="g", input=left, reference=right, operation=operation)
    except ValidationError:
        return
    names: dict[str, Any] = {}
    exec(graders.reward_file(grader), names)

    def filled(text: str) -> str:
        return {"{{item.a}}": "1", "{{sample.output_text}}": answer}.get(text, text)

    one, other = filled(left), filled(right)
    wanted = {
        "eq": one == other, "ne": one != other, "like": other in one, "ilike": other.lower() in one.lower(),
    }[operation]  # fmt: skip
    assert names["reward"]([answer], a=[1]) == [float(wanted)]
