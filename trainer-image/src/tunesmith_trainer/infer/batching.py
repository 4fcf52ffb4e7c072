"""What a model says of many rows, a batch at a time, compared with what the rows expect."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from tunesmith_trainer.data import Message, Row
from tunesmith_trainer.infer import scores
from tunesmith_trainer.infer.subject import Loaded, Sampling, Task
from tunesmith_trainer.rewards.rules import ANSWER, equal


def batches(
    loaded: Loaded, rows: Iterable[Row], size: int, sampling: Sampling, begin: int = 0
) -> Iterator[list[dict[str, Any]]]:
    """A result for each row, in their order, a batch at a time. `begin`: rows that came before. What is drawn for a
    batch depends on the seed and the number of its first row alone: it is the same wherever a run begins.
    """
    rows, number = iter(rows), begin
    while part := list(islice(rows, unit(loaded.subject.task, size))):
        if loaded.subject.task == "Generate":
            yield generated(loaded, part, replace(sampling, seed=sampling.seed + number))
        else:
            from tunesmith_trainer.infer.judging import judged

            yield judged(part, loaded, size)
        number += len(part)


def unit(task: Task, size: int) -> int | None:
    """Rows whose results are made together. None: all, since embeddings are compared with those of every other row."""
    return None if task == "Embed" else size


def check(loaded: Loaded, rows: Iterable[Row]) -> None:
    """See that every row can be put to the model, before the first is answered. Raises DataError."""
    if loaded.subject.task == "Generate":
        from tunesmith_trainer.infer.answering import prompt_of

        for row in rows:
            prompt_of(row, loaded)


def generated(loaded: Loaded, rows: Sequence[Row], sampling: Sampling) -> list[dict[str, Any]]:
    """The answers to a batch of rows, compared with those that the rows have."""
    from tunesmith_trainer.infer.answering import answers, prompt_of

    found = answers([prompt_of(row, loaded) for row in rows], loaded, sampling)
    return [result(row, answer) for row, answer in zip(rows, found, strict=True)]


def result(row: Row, answer: str) -> dict[str, Any]:
    """An answer beside what was asked and what is expected."""
    from tunesmith_trainer.rollouts import asked

    found: dict[str, Any] = {"row": row.where, "prompt": said(asked(row)) or row.text, "answer": answer}
    solution = None if row.extra.get(ANSWER) is None else str(row.extra[ANSWER])
    if wanted := expected(row):
        found |= {"expected": wanted, **scores.compared(answer, wanted)}
    elif wanted := solution:
        found["expected"] = wanted
    if wanted and wanted == solution:
        found["correct"] = equal(answer, wanted)
    return found


def said(messages: Sequence[Message]) -> list[Message]:
    """Messages for a result: media by their place."""
    return [{**one, "content": plain(one["content"])} for one in messages]


def plain(content: Any) -> Any:
    """A content without media's bytes."""
    if isinstance(content, str):
        return content
    return [
        {**{k: v for k, v in part.items() if k != "medium"}, "medium": part["medium"].path}
        if "medium" in part
        else part
        for part in content
    ]


def expected(row: Row) -> str | None:
    """The answer that a row has."""
    last = row.messages[-1] if row.messages else {"role": "none"}
    return str(last["content"]) if last["role"] == "assistant" and last["content"] else None
