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
from tunesmith_trainer.infer.answers import line_of
from tunesmith_trainer.infer.batching import batches, check
from tunesmith_trainer.infer.subject import Loaded, Sampling, Subject, find, load
from tunesmith_trainer.local.addresses import Here


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
    check(loaded, rows)
    results: list[dict[str, Any]] = []
    made = batches(loaded, rows, batch_size, sampling)
    count, alone = -(-len(rows) // batch_size), len(rows) <= batch_size
    with out.open("w", encoding="utf-8") as file:
        for batch in track(made, description="answering", total=count, disable=alone):
            file.writelines(map(line_of, batch))
            file.flush()
            results += batch
    return scores.summary(results)


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
