"""Which weights a FineTuneJob trains."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from tunesmith.api.base import ATOMIC, Model, rule, rules


class Tuner(Model):
    """Which weights are trained."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.type != 'Full' || "
                "!(has(self.rank) || has(self.alpha) || has(self.dropout) || has(self.targetModules))",
                "rank, alpha, dropout and targetModules are only for types LoRA and QLoRA",
            ),
            rule("self.type == 'QLoRA' || !has(self.quantization)", "quantization is only for type QLoRA"),
        )
    )
    type: Literal["LoRA", "QLoRA", "Full"] = "LoRA"
    """LoRA (low-rank adapters, arXiv 2106.09685), QLoRA (the same over a quantised base, arXiv 2305.14314) or
    Full (all weights)."""
    rank: Annotated[int, Field(ge=1, le=512)] | None = None
    """Rank of the adapters. Default: 8."""
    alpha: Annotated[float, Field(gt=0, le=4096)] | None = None
    """Scaling numerator: updates are scaled by alpha / rank. Default: four times the rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Dropout before the adapters. Default: 0.05."""
    target_modules: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=253)]],
            Field(min_length=1, max_length=64, json_schema_extra=ATOMIC),
        ]
        | None
    ) = None
    """Names of the linear modules that get an adapter, for example `q_proj`. Default: all linear layers but the
    output head."""
    quantization: Literal["NF4", "Int8"] | None = None
    """How QLoRA holds the base: NF4 (4 bit) or Int8. Default: NF4."""
