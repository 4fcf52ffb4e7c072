"""How a finished model's weights are made smaller."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from tunesmith.api.base import Model, rule, rules

QuantizationMethod = Literal["FP8", "W8A8", "W4A16", "NF4", "GGUF"]
GgufType = Literal["F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"]


class Quantization(Model):
    """A smaller form of the merged model, which the artefact then is. It is loaded again as it lies on disk, and its
    logits are compared with those of the merged model.
    """

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule("!has(self.groupSize) || self.method == 'W4A16'", "groupSize is only for W4A16"),
            rule("!has(self.ggufType) || self.method == 'GGUF'", "ggufType is only for GGUF"),
        )
    )
    method: QuantizationMethod
    """None needs calibration data: weights are rounded to the nearest, activations get their scale when the model runs.
    FP8: weights and activations, for GPUs from compute capability 8.9. W8A8: the same in 8-bit integers. W4A16: weights
    in 4-bit integers with a scale for each group of them. These are of compressed-tensors. NF4: 4-bit weights of
    bitsandbytes, as in QLoRA. GGUF: one file for llama.cpp and Ollama, with a Modelfile; a ModelDeployment does not
    serve it."""
    group_size: Literal[32, 64, 128] | None = None
    """Weights that share a scale; smaller is closer to the model, and larger in bytes. It must divide the input
    features of each linear layer. Default: 128."""
    gguf_type: GgufType | None = None
    """Of GGUF: how matrices are stored. The embeddings and the output head get at least 8 bits. Default: Q8_0."""
    tolerance: Annotated[float, Field(gt=0, le=1)] | None = None
    """Largest allowed error of the quantised model's logits: the norm of their difference from the merged model's, over
    the norm of these, on a fixed prompt set. A larger one fails the job. Default: FP8 and W8A8 0.2, W4A16 and NF4
    0.3; F16 and BF16 0.02, Q8_0 0.1, Q5_0 and Q5_1 0.2, Q4_0 and Q4_1 0.3."""
