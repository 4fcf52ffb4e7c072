"""NF4 of bitsandbytes (arXiv 2305.14314): 4-bit weights in blocks of 64, with scales that are quantised themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunesmith.training.plan import Place, QuantizationPlan

from tunesmith_trainer.model import load_model, own_dtype, save_companions


def write(source: Place, plan: QuantizationPlan, folder: Path) -> None:
    """Write the model at `source` in NF4 into the folder. Its quantised form is held whole."""
    import torch
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=plan.method.lower(),
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    dtype = own_dtype(source)
    model: Any = load_model(source, dtype, config, "cpu")
    model.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    save_companions(source, dtype, folder, {"quantization_config": written["quantization_config"]})
