"""GKD (arXiv 2306.13649): the student comes near a teacher's distribution, on its own answers or on the dataset's. By
trl.DistillationTrainer, which knows the student's own answers only.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast
from trl import DistillationConfig, DistillationTrainer
from tunesmith.training.plan import TrainPlan

from tunesmith_trainer import rollouts
from tunesmith_trainer.data import Row
from tunesmith_trainer.errors import DataError, ModelError
from tunesmith_trainer.masks import IGNORED, Masker
from tunesmith_trainer.methods import Prepared
from tunesmith_trainer.methods.causal import TASK, load
from tunesmith_trainer.model import check_files, config_of, load_model, load_tokenizer
from tunesmith_trainer.tokens import Limit

__all__ = ["CONFIG", "TASK", "TRAINER", "load", "prepare"]

CONFIG = DistillationConfig
TEACHER = "spec.method.gkd.teacher"


class TRAINER(rollouts.Rolling, DistillationTrainer):
    """DistillationTrainer, some of whose steps are on the dataset's answers."""

    def __init__(self, plan: TrainPlan, *arguments: Any, answers: list[list[int]], model: Any, **options: Any) -> None:
        assert plan.method.gkd
        self.share, self.answers = plan.method.gkd.on_policy, answers
        self.chosen: list[list[int]] | None = None
        # The student's dtype is also that of its hidden states, which are compared.
        teacher = load_model(plan.method.models[TEACHER], model.dtype)
        teacher.eval().requires_grad_(False)
        super().__init__(plan, *arguments, model=model, teacher_model=teacher, **options)

    def is_on_policy(self) -> bool:
        """Whether the step at hand is on the student's own answers. All processes draw the same."""
        draw = random.Random(f"{self.plan.training.seed}:{self.state.global_step}").random()
        return draw < self.share

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        own = self.is_on_policy()
        self.chosen = None if own else [self.answers[row["row"]] for row in inputs]
        made = super()._generate_and_score_completions(inputs)
        self._metrics["train"]["on_policy"].append(float(own))
        return made

    def _generate_single_turn(self, *arguments: Any, **options: Any) -> Any:
        if self.chosen is not None:
            return self.chosen
        return super()._generate_single_turn(*arguments, **options)


def answers(plan: TrainPlan, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """The tokens of the rows' own answers, with what ends the turn."""
    assert plan.method.gkd
    if plan.method.gkd.on_policy == 1:
        return []
    for row in rows:
        if not row.messages or row.messages[-1]["role"] != "assistant":
            raise DataError(
                f"{row.where}: no answer at its end; expected a conversation that ends with the assistant's turn, or "
                "spec.method.gkd.onPolicy 1, which needs prompts only"
            )
    coded = Masker(tokenizer, "LastAssistant").tokens(rows)
    return [one.ids[one.labels != IGNORED].tolist() for one in coded]


def vocabulary(config: dict[str, Any]) -> int | None:
    """Entries of a model's output; a multi-modal model says it of its language model."""
    found: int | None = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    return found


def check_teacher(plan: TrainPlan, tokenizer: PreTrainedTokenizerFast) -> None:
    """See that the teacher speaks of the same tokens. Its weights are not read."""
    place = plan.method.models[TEACHER]
    theirs, own = vocabulary(check_files(place)), vocabulary(config_of(plan.model))
    known, wanted = load_tokenizer(place).get_vocab(), tokenizer.get_vocab()
    advice = f"{TEACHER}: {place.uri} must have the vocabulary of {plan.model.uri}, whose tokens it is compared by"
    if known != wanted:
        differing = sorted(t for t in known.keys() | wanted.keys() if known.get(t) != wanted.get(t))
        raise ModelError(
            f"{advice}: {len(differing)} of {len(wanted)} tokens differ, for example {differing[0]!r} (teacher "
            f"{known.get(differing[0])}, student {wanted.get(differing[0])}). Take a teacher of the same family"
        )
    if theirs != own:
        raise ModelError(
            f"{advice}: its output has {theirs} entries, and the student's {own} (config.json, vocab_size). Take a "
            "teacher whose vocabulary is padded alike"
        )


def prepare(plan: TrainPlan, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> Prepared:
    """Prompts, and the dataset's answers where they are learned from."""
    method = plan.method.gkd
    assert method
    check_teacher(plan, tokenizer)
    limit = Limit.of(plan)
    found = rollouts.prompts(rows, tokenizer, limit, method.max_completion_length)
    given = answers(plan, found.rows, tokenizer)
    given = [ids[: limit.tokens - len(prompt)] for ids, prompt in zip(given, found.ids, strict=False)]
    arguments: dict[str, Any] = {
        "max_completion_length": method.max_completion_length,
        "temperature": method.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "beta": method.beta,
        "disable_dropout": True,
        "log_completions": False,
        **rollouts.unspoken(found, tokenizer),
    }
    options = {"processing_class": tokenizer, "prompts": found, "answers": given}
    return Prepared(found.dataset(), found.summary(), arguments, options)
