"""W4A16 and W8A8 rounded by data: GPTQ, AWQ and SmoothQuant of llm-compressor, in the formats of `compressed`.

The model is held whole, in its own dtype; llm-compressor moves one layer after the other to the accelerator, where
there is one.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.training.plan import CalibrationPlan, Place, QuantizationPlan

from tunesmith_trainer import streaming
from tunesmith_trainer.errors import ConfigError
from tunesmith_trainer.export import compressed
from tunesmith_trainer.masks import Masker
from tunesmith_trainer.model import load_model, load_tokenizer, own_dtype, save_companions
from tunesmith_trainer.reading import draw, read_datasets
from tunesmith_trainer.tokens import Limit, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SAMPLES = 512
"""Rows that are read where the plan does not say, as in llm-compressor's own examples."""
LABEL = "spec.quantization.calibration"


def write(source: Place, plan: QuantizationPlan, folder: Path) -> None:
    """Write the model at `source`, quantised as the plan's calibration says, into the folder."""
    assert plan.calibration
    try:
        from llmcompressor import oneshot
    except ImportError as error:
        raise ConfigError(
            f"{LABEL}: llm-compressor is not installed here ({error}): install tunesmith-trainer[calibration], or "
            "leave calibration out"
        ) from None
    from datasets import Dataset

    _, ignored = compressed.layers(source, streaming.skeleton(source), streaming.Weights(Path(source.path)), plan)
    rows = tokens(plan.calibration, load_tokenizer(source))
    print(f"{plan.calibration.algorithm}: calibrated by {len(rows)} rows, {sum(map(len, rows))} tokens")
    dtype = own_dtype(source)
    model: Any = load_model(source, dtype)
    without_pinning()
    oneshot(
        model=model,
        dataset=Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}),
        recipe=recipe(plan, ignored),
        num_calibration_samples=len(rows),
        max_seq_length=plan.calibration.max_length,
        shuffle_calibration_samples=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attempting to save a model with offloaded modules")
        model.save_pretrained(folder, save_compressed=True)
    (folder / "recipe.yaml").unlink(missing_ok=True)  # the manifest has the plan
    written = json.loads((folder / "config.json").read_text())
    save_companions(source, dtype, folder, {"quantization_config": written["quantization_config"]})


def tokens(calibration: CalibrationPlan, tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """The rows that are read, as the model sees them. Raises DataError."""
    rows: Sequence[Any] = read_datasets([calibration.dataset], "SFT", seed=0).rows
    if calibration.dataset.sample is None:
        rows = [rows[number] for number in draw(range(len(rows)), min(SAMPLES, len(rows)), "0")]
    table = tokenize(rows, Masker(tokenizer, "All"), Limit(calibration.max_length)).table
    return [list(row) for row in table["input_ids"]]


def recipe(plan: QuantizationPlan, ignored: list[str]) -> list[Any]:
    """What llm-compressor does, one after the other."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    assert plan.calibration
    how = {"config_groups": {"group_0": compressed.scheme_of(plan)}, "ignore": ignored}
    match plan.calibration.algorithm:
        case "GPTQ":
            return [GPTQModifier(**how)]
        case "AWQ":
            return [AWQModifier(), QuantizationModifier(**how)]
        case "SmoothQuant":
            return [SmoothQuantModifier(), QuantizationModifier(**how)]


def without_pinning() -> None:
    """AWQ pins its cache for copies to a GPU, even where there is none, and torch built for CUDA fails at that."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():
        IntermediatesCache.pin_memory = lambda *_: None
