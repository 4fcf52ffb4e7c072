"""An attempt of an InferenceJob: rows -> results.jsonl and metrics.json in the store. Rows that an earlier attempt has
answered are not asked again; the artefact appears when all are answered, in one step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tunesmith.reporting import served
from tunesmith.training.plan import InferencePlan
from tunesmith.training.report import Ending, Report, duration

from tunesmith_trainer import artifact
from tunesmith_trainer.data import Row
from tunesmith_trainer.ending import classify
from tunesmith_trainer.errors import DataError, Interrupted, OutOfMemory
from tunesmith_trainer.files import data_files
from tunesmith_trainer.infer import data, scores
from tunesmith_trainer.infer.answers import RESULTS, Answers
from tunesmith_trainer.infer.batching import batches, check, unit
from tunesmith_trainer.infer.subject import Sampling, Subject, Task, load, planned
from tunesmith_trainer.model import manifest_of
from tunesmith_trainer.reading import SourceFile, digest_of
from tunesmith_trainer.server import PORT

METRICS = "metrics.json"
SAY_SECONDS = 10.0
"""Between two lines of the log."""


class Progress:
    """How many rows are answered."""

    def __init__(self, rows: int, total: int) -> None:
        self.began, self.resumed, self.said = time.monotonic(), rows, 0.0
        self.report = Report(step=rows, total_steps=total, resumed_step=rows)

    def add(self, rows: int) -> None:
        """So many more."""
        now, done, total = time.monotonic(), self.report.step + rows, self.report.total_steps
        each = (now - self.began) / (done - self.resumed)
        left = int((total - done) * each)
        self.report = self.report.model_copy(update={"step": done, "step_seconds": each, "eta_seconds": left})
        if now - self.said >= SAY_SECONDS or done == total:
            self.said = now
            print(f"row {done}/{total}  {1 / each:.3g} rows/s  eta {duration(left)}", flush=True)


def infer(plan: InferencePlan) -> Ending:
    """Ask what is not answered yet, and publish the results. What can be known to be wrong is told before torch is
    loaded. Raises TrainerError, with the rows that are answered.
    """
    subject = planned(plan)
    sources = sources_of(plan)
    total = sum(1 for _ in rows_of(plan, subject.task))
    if not total:
        raise DataError("spec.datasets: there are no rows in them")
    answers = Answers(Path(plan.output.run), plan.attempt, inputs_of(plan, sources))
    progress = Progress(answers.take_over(total, unit(subject.task, plan.batch_size)), total)
    if progress.resumed:
        print(f"{progress.resumed} of {total} rows are answered already", flush=True)
    try:
        with served(PORT, lambda: progress.report):
            if progress.resumed < total:
                ask(plan, subject, answers, progress)
            return publish(plan, answers, sources)
    except Exception as error:
        failure = classify(error)
        done = answers.rows
        if isinstance(failure, Interrupted):
            failure = Interrupted(f"stopped by SIGTERM after {done} of {total} rows: the next attempt takes them over")
        elif isinstance(failure, OutOfMemory):
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            less = "halve spec.batchSize, lower spec.generation.maxTokens, or ask for more memory"
            failure = OutOfMemory(f"{text} To use less: {less}")
        failure.step = done
        raise failure from error


def ask(plan: InferencePlan, subject: Subject, answers: Answers, progress: Progress) -> None:
    """Answer the rows that are not, a batch at a time."""
    loaded, how = load(subject), plan.generation
    sampling = Sampling(how.max_tokens, how.temperature, how.top_p, how.seed)
    check(loaded, islice(rows_of(plan, subject.task), progress.resumed, None))
    progress.began = time.monotonic()
    left = islice(rows_of(plan, subject.task), progress.resumed, None)
    for results in batches(loaded, left, plan.batch_size, sampling, progress.resumed):
        answers.add(results)
        progress.add(len(results))


def publish(plan: InferencePlan, answers: Answers, sources: list[SourceFile]) -> Ending:
    """The results as an artefact."""
    summary = scores.summary(answers.results())
    with artifact.draft(plan, "results") as folder:
        answers.copy_to(folder / RESULTS)
        artifact.write_files(folder, {METRICS: summary})
        made = artifact.publish(folder, plan, "results", summary, sources)
    print(f"artefact {made.uri}: {json.dumps(summary)}")
    rows = int(summary.pop("rows"))
    return Ending(
        reason="Completed", message=f"answered {rows} rows", step=rows, artifact=made, metrics=summary or None
    )


def rows_of(plan: InferencePlan, task: Task) -> Iterator[Row]:
    """The rows, as they are read: never all in memory. Raises DataError."""
    every = (row for label, one in labelled(plan) for row in data.read(one, task, label))
    return islice(every, plan.max_rows)


def sources_of(plan: InferencePlan) -> list[SourceFile]:
    """The files that rows come from."""
    found = [pair for label, one in labelled(plan) for pair in data_files(one, label, data.SPLIT)]
    return [SourceFile(uri, digest_of(path)) for path, uri in found]


def labelled(plan: InferencePlan) -> Iterator[tuple[str, Any]]:
    """(field, dataset) of each."""
    return ((f"spec.datasets[{number}]", one) for number, one in enumerate(plan.datasets))


def inputs_of(plan: InferencePlan, sources: list[SourceFile]) -> dict[str, Any]:
    """What the answers depend on and a job's fixed spec does not hold."""
    models = [plan.model, *([plan.adapter] if plan.adapter else [])]
    return {
        "models": [[one.uri, manifest_of(one).get("digest")] for one in models],
        "data": [[source.uri, source.digest] for source in sources],
    }
