"""What methods share whose model answers by itself while it trains: prompts, their order, and a resumable sampling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from tunesmith.api.methods import Rollout

from tunesmith_trainer import chat, group
from tunesmith_trainer.chat import need_template, template_errors
from tunesmith_trainer.collate import Injection
from tunesmith_trainer.data import Message, Row
from tunesmith_trainer.errors import ConfigError, DataError
from tunesmith_trainer.lifecycle import Lifecycle
from tunesmith_trainer.masks import Learned, expanded, numbers_of, raw
from tunesmith_trainer.multimodal import processor_of
from tunesmith_trainer.order import Order
from tunesmith_trainer.tokens import Limit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


CLIPPED = ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")
"""Metrics of ratios that are clipped."""


def asked(row: Row) -> list[Message]:
    """The messages that are to be answered: without the last turn, where that is an answer."""
    turns = list(row.messages)
    return turns[:-1] if turns and turns[-1]["role"] == "assistant" else turns


@dataclass
class Prompts:
    """Prompts as the model reads them."""

    rows: list[Row] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    """Tokens of each text."""
    media: list[list[int]] | None = None
    """The numbers of each row's media, where there are any (multimodal.py)."""
    dropped: int = 0
    """Rows whose prompt leaves no room for an answer within the limit."""

    def dataset(self) -> Dataset:
        """What TRL's trainers read: the prompt's text, and the number of its row."""
        return Dataset.from_dict({"prompt": self.texts, "row": list(range(len(self.rows)))})

    def summary(self) -> str:
        """For people."""
        tokens = sum(map(len, self.ids))
        return f"{len(self.rows)} prompts, {tokens} tokens; {self.dropped} left out as too long"


def render(row: Row, tokenizer: PreTrainedTokenizerFast) -> str:
    """A row's prompt, up to where the model begins to answer."""
    if not row.messages:
        return raw(row, tokenizer)
    turns = asked(row)
    if not turns:
        raise DataError(f"{row.where}: there is nothing to answer: found only an assistant's turn")
    need_template([row], tokenizer)
    with template_errors(row):
        return chat.render(tokenizer, row, turns, prompt=True)


def coded(row: Row, tokenizer: PreTrainedTokenizerFast) -> tuple[str, list[int]]:
    """(a row's prompt with as many placeholders as its media take, its tokens)."""
    turns = replace(row, messages=tuple(asked(row)))
    text = expanded(Learned(turns, render(row, tokenizer), []), tokenizer).text
    # A template writes the special tokens itself.
    ids: Any = tokenizer(text, add_special_tokens=not row.messages)["input_ids"]
    return text, list(ids)


def prompts(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, limit: Limit, answer: int) -> Prompts:
    """The prompts of `rows`, each of which leaves room for `answer` tokens within the limit."""
    found = Prompts()
    for row in rows:
        text, ids = coded(row, tokenizer)
        if len(ids) + answer > limit.tokens or not ids:
            limit.refuse(row, len(ids) + answer)
            found.dropped += 1
        else:
            found.rows.append(row)
            found.texts.append(text)
            found.ids.append(ids)
    if not found.rows:
        raise DataError(
            f"none of {len(rows)} prompts leaves room for an answer of maxCompletionLength {answer} within "
            f"spec.training.maxLength {limit.tokens}: raise maxLength, or lower maxCompletionLength"
        )
    found.media = numbers_of([replace(row, messages=tuple(asked(row))) for row in found.rows], tokenizer)
    return found


def unspoken(found: Prompts, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What a trainer that samples is told where rows have media: an answer holds no placeholder of one."""
    multimodal = processor_of(tokenizer)
    if multimodal is None or found.media is None:
        return {}
    tokens: Any = tokenizer.convert_tokens_to_ids(list(multimodal.tokens.values()))
    return {"generation_kwargs": {"suppress_tokens": tokens}}


def sampling(rollout: Rollout) -> dict[str, Any]:
    """How answers are sampled, as GRPOConfig says it. Dropout is off: one model answers and is trained."""
    colocate = rollout.backend == "VLLMColocate"
    return {
        "max_completion_length": rollout.max_completion_length,
        "temperature": rollout.temperature,
        "top_p": rollout.top_p,
        "top_k": 0,
        "use_vllm": colocate,
        **({"vllm_mode": "colocate"} if colocate else {}),
        "disable_dropout": True,
        "log_completions": False,
    }


class Groups(Sampler[int]):
    """The order of prompts: that of `Order`, each prompt `answers` times in a row, and each set of prompts as often as
    the trainer asks for it: in each micro-batch (`parts`) of each pass over it (`passes`).
    """

    def __init__(self, rows: int, prompts: int, seed: int, answers: int, parts: int, passes: int) -> None:
        self.order = Order(rows, prompts, seed)
        self.answers, self.parts, self.passes = answers, parts, passes
        self.steps = self.order.steps * passes
        """Optimizer steps of an epoch."""

    @property
    def epoch(self) -> int:
        """The epoch at hand."""
        return self.order.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.order.epoch = epoch

    def __len__(self) -> int:
        """Numbers that an epoch yields."""
        return len(self.order) * self.answers * self.parts * self.passes

    def __iter__(self) -> Iterator[int]:
        """The rows of the epoch at hand."""
        rows, size = list(self.order), self.order.batch
        for begin in range(0, len(rows), size):
            for _ in range(self.parts * self.passes):
                for row in rows[begin : begin + size]:
                    yield from [row] * self.answers


class Rolling(Lifecycle):
    """Beside one of TRL's trainers that generate. What is sampled depends on the seed, the step, the rank and the
    weights alone, so that a run that goes on from a checkpoint samples what the uninterrupted one does. (With another
    number of processes it answers the same prompts otherwise.)
    """

    ANSWERS = 1
    """Answers to each prompt."""
    PASSES = 1
    """Optimizer steps on one set of answers."""
    BY_TOKEN: tuple[str, ...] = ("entropy",)
    """Metrics of a micro-batch that are means over its answers' tokens."""

    def __init__(self, *arguments: Any, prompts: Prompts, **options: Any) -> None:
        self.prompts = prompts
        self.aligned = False
        self.at_hand: list[int] = []
        """The rows of the batch that is answered or learned from."""
        ends = chat.ends(options["processing_class"])
        options["model"].generation_config.eos_token_id = ends  # TRL reads it there
        if options["args"].use_vllm:
            options["args"].generation_kwargs = {"stop_token_ids": ends}
        super().__init__(*arguments, **options)
        self.injection: Injection | None = None
        if prompts.media:
            if getattr(self, "use_vllm", False):
                raise ConfigError(
                    f"{prompts.rows[0].where}: rollouts of rows with media are not carried out by vLLM yet: set "
                    "rollout.backend to Transformers"
                )
            self.injection = Injection(processor_of(self._tokenizer), prompts.media)
            for name in ("model", "ref_model", "teacher_model"):
                if getattr(self, name, None) is not None:
                    self.injection.watch(getattr(self, name))

    def with_media(self) -> AbstractContextManager[None]:
        """Passes within see the media of the rows at hand."""
        return self.injection.of(self.at_hand) if self.injection else nullcontext()

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **options: Any) -> Any:
        with self.with_media():
            return super()._get_per_token_logps_and_entropies(*arguments, **options)

    def _get_last_hidden_state(self, *arguments: Any, **options: Any) -> Any:
        with self.with_media():
            return super()._get_last_hidden_state(*arguments, **options)

    def _compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any) -> Any:
        self.at_hand = inputs["rows"].tolist()
        return super()._compute_loss(model, inputs, *arguments)

    def counted(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Tokens of the answers."""
        return dict.fromkeys(self.BY_TOKEN, inputs["completion_mask"].sum())

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        training = self.plan.training
        self.order: Any = Groups(
            len(self.prompts.rows),
            training.global_batch_size // self.ANSWERS,
            training.seed,
            self.ANSWERS,
            training.gradient_accumulation_steps,
            self.PASSES,
        )
        return self.order

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        ids = [list(self.prompts.ids[row]) for row in self.at_hand]
        if self.injection is None:
            return ids, None, {}
        longest = max(map(len, ids))
        padded = torch.tensor([[self._tokenizer.pad_token_id] * (longest - len(one)) + one for one in ids])
        return ids, None, self.injection.fields(self.at_hand, padded)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """Also where a checkpoint was written between two passes over one set of answers."""
        if not self.aligned:
            self.aligned = True
            self._step = self.state.global_step * self.args.gradient_accumulation_steps
        return super().training_step(model, inputs, num_items_in_batch)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        seed = self.plan.training.seed + 1_000_003 * (self.state.global_step + 1) + 7919 * self.args.process_index
        torch.manual_seed(seed)
        self.at_hand = [one["row"] for one in inputs]
        made: dict[str, Any] = super()._generate_and_score_completions(inputs)
        made["rows"] = torch.tensor(self.at_hand, device=self.args.device)
        return made

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The tokens that were read and written, also in steps that sample none."""
        if "loss" in logs:
            logs["num_tokens"] = float(self.state.num_input_tokens_seen)
        super().log(logs, start_time)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.PASSES > 1 and self.state.global_step % self.PASSES:
            state = {"world_size": self.args.world_size, "inputs": self._buffered_inputs}
            torch.save(state, Path(output_dir) / f"answers-{self.args.process_index}.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint, f"answers-{self.args.process_index}.pt")
        # By its type: torch finds no place for what is on "cpu:0", as DeepSpeed's processes call theirs.
        device = self.args.device.type
        state = torch.load(path, map_location=device, weights_only=True) if path.is_file() else None
        if state and state["world_size"] == self.args.world_size:
            self._buffered_inputs = state["inputs"]
        elif group.is_first() and self.PASSES > 1 and self.state.global_step % self.PASSES:
            print("another number of processes wrote this checkpoint: its set of answers is sampled again")


class Rewarded(Rolling):
    """Beside GRPOTrainer: rewards get the rows that prompts came from."""

    def __init__(self, *arguments: Any, rewards: list[Any], **options: Any) -> None:
        functions = [Scored(reward, self) for reward in rewards]
        super().__init__(*arguments, reward_funcs=functions, **options)
        for reward in rewards:
            if hasattr(reward.score, "load"):
                reward.score.load(self.args.device)


class Scored:
    """A reward as TRL calls it."""

    def __init__(self, reward: Any, trainer: Rewarded) -> None:
        self.reward, self.trainer = reward, trainer
        self.__name__ = str(reward.name)

    def __call__(
        self,
        prompts: list[str],
        completions: list[str],
        completion_ids: list[list[int]],
        row: list[int],
        **columns: Any,
    ) -> list[float | None]:
        """One for each answer."""
        rows = [self.trainer.prompts.rows[number] for number in row]
        scores: list[float | None] = self.reward(rows, prompts, completions, completion_ids)
        return scores
