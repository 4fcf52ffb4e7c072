"""A reward model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.training.plan import Place

from tunesmith_trainer.data import Row
from tunesmith_trainer.errors import ModelError
from tunesmith_trainer.media import media_of
from tunesmith_trainer.rewards.answers import Answers, Scores

if TYPE_CHECKING:
    import torch


class Model:
    """A reward model: a sequence classifier with one label, with its own tokenizer and chat template, and the system
    prompt and arguments that its own training told that. It reads the decoded text, so that it need not be of the
    policy's family.
    """

    BATCH = 8

    def __init__(self, place: Place, field: str) -> None:
        from tunesmith_trainer.model import check_files, load_tokenizer
        from tunesmith_trainer.trained import trained_as

        if (Path(place.path) / "adapter_config.json").is_file():
            raise ModelError(
                f"{field}.model: {place.uri} is an adapter: give a whole model (tuner Full, or a MergeJob's)"
            )
        config = check_files(place)
        labels = config.get("num_labels", len(config.get("id2label") or {}) or None)
        heads = [name for name in config.get("architectures") or [] if "SequenceClassification" in name]
        if not heads or labels != 1:
            raise ModelError(
                f"{field}.model: {place.uri} must be a sequence classifier with one label; found "
                f"{config.get('architectures')} with {labels or 2} label(s)"
            )
        self.place = place
        trained = trained_as(place)
        self.tokenizer = load_tokenizer(place, trained and trained.chat_template)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model: Any = None

    def load(self, device: torch.device) -> None:
        """Hold the model on `device`."""
        import torch

        from tunesmith_trainer.model import model_class

        try:
            self.model = model_class(self.place, "SequenceClassification").from_pretrained(
                self.place.path,
                dtype=torch.float32 if device.type == "cpu" else torch.bfloat16,
                use_safetensors=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(f"model {self.place.uri}: it cannot be loaded: {error}") from error
        self.model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        self.model.eval().requires_grad_(False).to(device)

    def text(self, row: Row, prompt: str, completion: str) -> tuple[str, bool]:
        """(a prompt and an answer to it, as the reward model reads them: with the row's media, if it reads those;
        whether the tokenizer's own special tokens belong to it).
        """
        from tunesmith_trainer import chat
        from tunesmith_trainer.masks import Learned, expanded
        from tunesmith_trainer.rollouts import asked

        if not row.messages or not self.tokenizer.chat_template:
            return prompt + completion, True
        turns = [*asked(row), {"role": "assistant", "content": completion}]
        text = chat.render(self.tokenizer, row, turns)
        return expanded(Learned(row, text, []), self.tokenizer).text if self.tokenizer.multimodal else text, False

    def __call__(self, answers: Answers) -> Scores:
        """Its logits."""
        import torch

        triples = zip(answers.rows, answers.prompts, answers.completions, strict=True)
        texts = [self.text(*triple) for triple in triples]
        scores: Scores = []
        for begin in range(0, len(texts), self.BATCH):
            ids = [
                self.tokenizer(text, add_special_tokens=special)["input_ids"]
                for text, special in texts[begin : begin + self.BATCH]
            ]
            padded = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt", padding_side="right")
            coded = padded.to(self.model.device)
            if multimodal := self.tokenizer.multimodal:
                rows = answers.rows[begin : begin + self.BATCH]
                found = multimodal.tensors_of([media_of(row.messages) for row in rows])
                found |= multimodal.token_types(coded["input_ids"]) if found else {}
                coded.update({name: value.to(self.model.device) for name, value in found.items()})
            with torch.inference_mode():
                scores += self.model(**coded).logits[:, 0].float().tolist()
        return scores
