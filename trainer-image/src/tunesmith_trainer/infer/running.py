"""The command `infer`: one question, a conversation, or a dataset."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.progress import track

from tunesmith_trainer.data import Message, Row
from tunesmith_trainer.errors import ConfigError
from tunesmith_trainer.infer import data, scores
from tunesmith_trainer.infer.subject import Loaded, Sampling, Subject, find, load
from tunesmith_trainer.local.addresses import Here

SOLUTION = "solution"
"""The column with the right result of rows that are rewarded (rewards.py)."""


def ask(loaded: Loaded, columns: dict[str, Any], sampling: Sampling) -> None:
    """Print what the model says of one row: an answer while it is made, anything else as JSON."""
    row = data.one(loaded.subject.task, columns)
    if loaded.subject.task == "Generate":
        from tunesmith_trainer.infer.answering import stream

        stream(row, loaded, sampling)
        return
    from tunesmith_trainer.infer.judging import judged

    [found] = judged([row], loaded, 1)
    print(json.dumps({name: value for name, value in found.items() if name != "row"}, ensure_ascii=False))


def converse(loaded: Loaded, system: str | None, sampling: Sampling, lines: Iterator[str]) -> None:
    """Answer line after line, each with what was said before it. An empty line begins anew."""
    from tunesmith_trainer.infer.answering import stream

    begin: list[Message] = [{"role": "system", "content": system}] if system else []
    turns = list(begin)
    for line in lines:
        if not line.strip():
            turns = list(begin)
            continue
        if not loaded.tokenizer.chat_template:  # a base model goes on with a text
            stream(Row("asked", text=line), loaded, sampling)
            continue
        turns.append({"role": "user", "content": line})
        answer = stream(Row("asked", messages=tuple(turns)), loaded, sampling)
        turns.append({"role": "assistant", "content": answer})


def over(loaded: Loaded, rows: Sequence[Row], out: Path, batch_size: int, sampling: Sampling) -> dict[str, Any]:
    """Write a line of JSON for each row, in their order, and return the means of the scores."""
    out.parent.mkdir(parents=True, exist_ok=True)
    results = []
    work = generated if loaded.subject.task == "Generate" else judgements
    with out.open("w", encoding="utf-8") as file:
        for result in work(loaded, rows, batch_size, sampling):
            file.write(json.dumps(result, ensure_ascii=False) + "\n")
            file.flush()
            results.append(result)
    return scores.summary(results)


def judgements(loaded: Loaded, rows: Sequence[Row], batch_size: int, sampling: Sampling) -> Iterator[dict[str, Any]]:
    """What a model says that does not answer."""
    from tunesmith_trainer.infer.judging import judged

    yield from judged(rows, loaded, batch_size)


def generated(loaded: Loaded, rows: Sequence[Row], batch_size: int, sampling: Sampling) -> Iterator[dict[str, Any]]:
    """Answers, compared with those that the rows have."""
    from tunesmith_trainer.infer.answering import answers, prompt_of
    from tunesmith_trainer.rollouts import asked

    prompts = [prompt_of(row, loaded) for row in rows]  # what cannot be read is told before the first answer
    batches = range(0, len(rows), batch_size)
    for begin in track(batches, description="answering", disable=len(rows) <= batch_size):
        part = slice(begin, begin + batch_size)
        for row, answer in zip(rows[part], answers(prompts[part], loaded, sampling), strict=True):
            result: dict[str, Any] = {"row": row.where, "prompt": said(asked(row)) or row.text, "answer": answer}
            if wanted := expected(row):
                result |= {"expected": wanted, **scores.compared(answer, wanted)}
            elif row.extra.get(SOLUTION) is not None:
                from tunesmith_trainer.rewards import equal

                wanted = str(row.extra[SOLUTION])
                result |= {"expected": wanted, "correct": equal(answer, wanted)}
            yield result


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


def columns(
    subject: Subject, prompt: str, system: str | None, response: str | None, documents: list[str],
    media: dict[str, list[Path]],
) -> dict[str, Any]:  # fmt: skip
    """What was asked on the command line, as columns of a row."""
    found: dict[str, Any] = {"system": system} if system else {}
    found |= {name: [str(path.resolve()) for path in paths] for name, paths in media.items() if paths}
    if subject.task == "Generate":
        return {**found, "query": prompt}
    if subject.task == "Score":
        if not response:
            raise ConfigError("--response: a reward model judges an answer to the prompt: give it")
        return {**found, "query": prompt, "response": response}
    if subject.task == "Rerank":
        if not documents:
            raise ConfigError("--document: a reranker orders documents: give it once for each")
        return {**found, "query": prompt, "positive": documents}
    return {**found, "text" if not system else "query": prompt}


def infer(
    artifact: str, *, prompt: str | None, source: str | None, out: Path, system: str | None, response: str | None,
    documents: list[str], media: dict[str, list[Path]], base: Path | None, claims: Path, batch_size: int,
    limit: int | None, sampling: Sampling, lines: Iterator[str],
) -> None:  # fmt: skip
    """Carry out the command. Files are looked at, and rows read, before torch is loaded."""
    here = Here(claims.resolve())
    subject = find(artifact, here, base)
    if prompt is not None and source is not None:
        raise ConfigError("--prompt and --data: give one of them")
    found = columns(subject, prompt, system, response, documents, media) if prompt is not None else {}
    rows = data.rows(subject, source, here, limit) if source is not None else []
    loaded = load(subject)
    if rows:
        summary = over(loaded, rows, out, batch_size, sampling)
        print(json.dumps({**summary, "results": str(out)}, ensure_ascii=False))
    elif prompt is not None:
        ask(loaded, found, sampling)
    elif subject.task == "Generate":
        converse(loaded, system, sampling, lines)
    else:
        for line in lines:
            ask(loaded, columns(subject, line, system, response, documents, media), sampling)
