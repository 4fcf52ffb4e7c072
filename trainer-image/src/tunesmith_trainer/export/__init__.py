"""Export: a model in a smaller form, loaded again as it lies on disk and compared with what it was made from.

The error is ||a - b|| / ||a||: a are the logits of the model, b those of the exported one as its format's own reader
(transformers) loads it, with activations quantised as the format says. Both are computed in float32 over the prompts
of `comparison`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tunesmith.api.quantization import QuantizationMethod
from tunesmith.training.plan import Place, QuantizationPlan

from tunesmith_trainer import comparison
from tunesmith_trainer.errors import CheckFailed
from tunesmith_trainer.export import calibrated, compressed, gguf, nf4
from tunesmith_trainer.model import load_model, load_tokenizer

if TYPE_CHECKING:
    import torch


def logits(folder: Path, tokenizer: Any) -> list[torch.Tensor]:
    """The logits of what was written, as transformers reads it."""
    import torch

    loaded: Any = load_model(Place(uri="quantised", path=str(folder)), torch.float32)
    return comparison.logits(loaded, tokenizer)


class Format(NamedTuple):
    """How a method's files are written and read."""

    write: Callable[[Place, QuantizationPlan, Path], None]
    logits: Callable[[Path, Any], list[torch.Tensor]] = logits
    """Of what lies in the folder, for the prompts as the source's tokenizer makes tokens of them."""
    finer: str = "no quantisation"
    """What is closer to the model."""


FORMATS: dict[QuantizationMethod, Format] = {
    "FP8": Format(compressed.write),
    "W8A8": Format(compressed.write),
    "W4A16": Format(compressed.write, finer="calibration, a smaller groupSize, NF4, W8A8 or FP8"),
    "NF4": Format(nf4.write, finer="W8A8 or FP8"),
    "GGUF": Format(gguf.write, gguf.logits, finer="a larger ggufType"),
}


def export(source: Place, plan: QuantizationPlan, folder: Path, expected: list[torch.Tensor] | None = None) -> float:
    """Write the model at `source` into the folder as `plan` says, and return its error. `expected` are the logits of
    the model, where they are known already.
    """
    import torch

    tokenizer = load_tokenizer(source)
    form = FORMATS[plan.method]
    write = calibrated.write if plan.calibration else form.write
    write(source, plan, folder)
    expected = comparison.saved_logits(source, torch.float32, tokenizer) if expected is None else expected
    error = comparison.logit_error(expected, form.logits(folder, tokenizer))
    print(f"{plan.gguf_type or plan.method}: logit error {error:.3e}, tolerance {plan.tolerance:g}")
    if not error <= plan.tolerance:  # nan is no pass
        raise CheckFailed(
            f"the logits in {plan.method} differ from the model's own by {error:.4g} (norm of the difference over "
            f"norm), more than spec.quantization.tolerance {plan.tolerance:g}: try {form.finer}, or allow more if "
            "your own evaluation does"
        )
    return error
