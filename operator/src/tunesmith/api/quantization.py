"""How a finished model's weights are made smaller."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from tunesmith.api.base import Model, rule, rules
from tunesmith.api.dataset import Dataset

QuantizationMethod = Literal["FP8", "W8A8", "W4A16", "NF4", "GGUF"]
GgufType = Literal["F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"]

CalibrationAlgorithm = Literal["GPTQ", "AWQ", "SmoothQuant"]


class Calibration(Model):
    """Rows that the model reads while it is quantised, so that its outputs on them change least."""

    algorithm: CalibrationAlgorithm = "GPTQ"
    """GPTQ: each column is rounded, and those after it make up for the error (arXiv 2210.17323); for W4A16 and W8A8.
    AWQ: inputs that weigh more are scaled up before weights are rounded (arXiv 2306.00978); for W4A16. SmoothQuant:
    outliers of activations are moved into the weights (arXiv 2211.10438); for W8A8. All are llm-compressor's."""
    dataset: Dataset
    """Conversations or texts like those that the model will see. `sample` says how many rows are read; default: 512, or
    all if there are fewer."""
    max_length: Annotated[int, Field(ge=16, le=1_048_576)] = 2048
    """Tokens of a row; longer ones are cut."""


class Quantization(Model):
    """A smaller form of the merged model, which the artefact then is. It is loaded again as it lies on disk, and its
    logits are compared with those of the merged model.
    """

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule("!has(self.groupSize) || self.method == 'W4A16'", "groupSize is only for W4A16"),
            rule("!has(self.ggufType) || self.method == 'GGUF'", "ggufType is only for GGUF"),
            rule(
                "!has(self.calibration) || self.method in ['W4A16', 'W8A8']",
                "calibration is only for W4A16 and W8A8; the others are rounded to nearest",
            ),
            rule(
                "!has(self.calibration) || self.calibration.algorithm != 'AWQ' || self.method == 'W4A16'",
                "calibration.algorithm AWQ is only for W4A16",
            ),
            rule(
                "!has(self.calibration) || self.calibration.algorithm != 'SmoothQuant' || self.method == 'W8A8'",
                "calibration.algorithm SmoothQuant is only for W8A8",
            ),
        )
    )
    method: QuantizationMethod
    """Without `calibration` weights are rounded to the nearest; activations get their scale when the model runs.
    FP8: weights and activations, for GPUs from compute capability 8.9. W8A8: the same in 8-bit integers. W4A16: weights
    in 4-bit integers with a scale for each group of them. These are of compressed-tensors. NF4: 4-bit weights of
    bitsandbytes, as in QLoRA. GGUF: one file for llama.cpp and Ollama, with a Modelfile; a ModelDeployment does not
    serve it."""
    group_size: Literal[32, 64, 128] | None = None
    """Weights that share a scale; smaller is closer to the model, and larger in bytes. It must divide the input
    features of each linear layer. Default: 128."""
    gguf_type: GgufType | None = None
    """Of GGUF: how matrices are stored. The embeddings and the output head get at least 8 bits. Default: Q8_0."""
    calibration: Calibration | None = None
    """Choose the rounding by data. Default: to nearest."""
    tolerance: Annotated[float, Field(gt=0, le=1)] | None = None
    """Largest allowed error of the quantised model's logits: the norm of their difference from the merged model's, over
    the norm of these, on a fixed prompt set. A larger one fails the job. Default: FP8 and W8A8 0.2, W4A16 and NF4
    0.3; F16 and BF16 0.02, Q8_0 0.1, Q5_0 and Q5_1 0.2, Q4_0 and Q4_1 0.3."""
