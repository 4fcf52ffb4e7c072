"""Which weights a FineTuneJob trains."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from tunesmith.api.base import ATOMIC, Model, rule, rules

TunerType = Literal["LoRA", "QLoRA", "PEFT", "Full"]
PeftType = Literal[
    "AdaLoRA", "BOFT", "C3A", "DeLoRA", "FourierFT", "GraLoRA", "HiRA", "HRA", "IA3", "LNTuning", "LoHa", "LoKr",
    "MiSS", "OFT", "PrefixTuning", "PromptTuning", "PTuning", "RandLoRA", "SHiRA", "VBLoRA", "VeRA",
]  # fmt: skip
Switch = Literal["Enabled", "Disabled"]
Names = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=253)]],
    Field(min_length=1, max_length=64, json_schema_extra=ATOMIC),
]
Pattern = Annotated[str, Field(min_length=1, max_length=1024)]

LORA_ONLY = ("rank", "alpha", "dropout", "bias", "dora", "rsLora", "loraPlusRatio")
ADAPTERS_ONLY = ("targetModules", "targetPattern", "modulesToSave")


def _none_of(*names: str) -> str:
    return " && ".join(f"!has(self.{name})" for name in names)


class Peft(Model):
    """An adapter of PEFT's other kinds."""

    type: PeftType
    """Kind of adapter, by its name in PEFT: https://huggingface.co/docs/peft."""
    options: Annotated[
        dict[str, Any], Field(max_length=32, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})
    ] = {}
    """Fields of PEFT's configuration class of this kind, by their names there, for example `r: 8` or
    `oft_block_size: 16`. The trainer refuses names and values that the class does not take. Modules are named in
    tuner.targetModules, not here."""


class Freeze(Model):
    """Parts of a multi-modal model that are not trained. Models that read text only have just a language model."""

    towers: bool = True
    """The vision and audio towers, which turn images and sound into features."""
    aligner: bool = True
    """What maps the towers' features to the language model's inputs."""
    language_model: bool = False
    """The language model with its embeddings and output head."""


class Tuner(Model):
    """Which weights are trained."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                f"self.type in ['LoRA', 'QLoRA'] || ({_none_of(*LORA_ONLY)})",
                f"{', '.join(LORA_ONLY)} are only for types LoRA and QLoRA",
            ),
            rule(
                f"self.type != 'Full' || ({_none_of(*ADAPTERS_ONLY)})",
                f"{', '.join(ADAPTERS_ONLY)} are not for type Full, which has lastLayers and trainablePattern",
            ),
            rule(
                "!(has(self.targetModules) && has(self.targetPattern))",
                "at most one of targetModules and targetPattern must be set",
            ),
            rule("self.type == 'QLoRA' || !has(self.quantization)", "quantization is only for type QLoRA"),
            rule("self.type == 'LoRA' || !has(self.initialization)", "initialization is only for type LoRA"),
            rule("has(self.peft) == (self.type == 'PEFT')", "peft must be set for type PEFT, and only for it"),
            rule(
                f"self.type == 'Full' || ({_none_of('lastLayers', 'trainablePattern')})",
                "lastLayers and trainablePattern are only for type Full",
            ),
        )
    )
    type: TunerType = "LoRA"
    """LoRA (low-rank adapters, arXiv 2106.09685), QLoRA (the same over a base that is quantised while it is loaded,
    arXiv 2305.14314), PEFT (an adapter of another kind, see peft) or Full (all weights, or some of them)."""
    rank: Annotated[int, Field(ge=1, le=512)] | None = None
    """Rank of the adapters. Default: 8."""
    alpha: Annotated[float, Field(gt=0, le=4096)] | None = None
    """Scaling numerator: updates are scaled by alpha / rank. Default: four times the rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Dropout before the adapters. Default: 0.05."""
    target_modules: Names | None = None
    """Names of the modules that get an adapter, for example `q_proj`. Default: all linear layers but the output
    head; for type PEFT what its kind is made for."""
    target_pattern: Pattern | None = None
    """Instead of targetModules: a regular expression that the whole of a module's name must match, for example
    `.*layers\\.(1[0-9])\\..*\\.(q|v)_proj`."""
    modules_to_save: Names | None = None
    """Modules that are trained whole beside the adapters and saved with them, for example `embed_tokens` and
    `lm_head` where new tokens are learned. vLLM serves no such adapter: merge it."""
    bias: Literal["None", "All", "AdaptersOnly"] | None = None
    """Biases that are trained, too: none, all, or those of the modules with adapters. vLLM serves no such adapter:
    merge it. Default: None."""
    dora: Switch | None = None
    """DoRA: the magnitude of each weight's rows is trained apart from their direction (arXiv 2402.09353). vLLM serves
    no such adapter: merge it. Default: Disabled."""
    rs_lora: Switch | None = None
    """rsLoRA: updates are scaled by alpha / sqrt(rank) (arXiv 2312.03732). Default: Disabled."""
    lora_plus_ratio: Annotated[float, Field(ge=1, le=1024)] | None = None
    """LoRA+: the learning rate of the matrices B over that of A, which is training.learningRate (arXiv 2402.12354).
    Default: 1."""
    initialization: Literal["Zero", "PiSSA"] | None = None
    """How adapters begin: with no effect (Zero), or with the largest singular values and vectors of the weights, which
    the base then lacks (PiSSA, arXiv 2404.02948). A PiSSA adapter is saved as a LoRA of twice the rank that fits the
    untouched base. Default: Zero."""
    freeze: Freeze = Freeze()
    """Parts of a multi-modal model that are not trained and get no adapters."""
    quantization: Literal["NF4", "Int8"] | None = None
    """How QLoRA holds the base: NF4 (4 bit) or Int8. Default: NF4."""
    peft: Peft | None = None
    """The adapter of type PEFT. Of these only LoRA's own kinds are served by vLLM; most can be merged."""
    last_layers: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Type Full: only the last so many layers are trained, and what trainablePattern matches. Default: all weights."""
    trainable_pattern: Pattern | None = None
    """Type Full: only parameters are trained whose name has a match of this regular expression, for example
    `norm|lm_head`, and those of lastLayers. Default: all weights."""
