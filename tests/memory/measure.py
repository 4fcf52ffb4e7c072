"""Measures training steps on CPU: `python measure.py FOLDER`, started by test_estimates.py.

Of `config.json` it makes a random model, makes steps by each of `plans/*.json`, and writes `NAME.result` beside it.
Of each of `configs/*.json` it counts what a model without weights has.

It takes of the trainer how the model is loaded, quantised and given adapters; the step is the trainer's too (TRL's
fused head, AdamW), without what is not memory.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head
from tunesmith.training.plan import TrainPlan
from tunesmith_trainer import tuner
from tunesmith_trainer.model import load_model


def resident() -> int:
    """Anonymous memory of this process: pages of files that are merely mapped are not its own."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


@contextmanager
def watched() -> Iterator[list[int]]:
    """The largest resident memory seen while the block runs."""
    most, done = [resident()], threading.Event()

    def look() -> None:
        while not done.wait(0.002):
            most[0] = max(most[0], resident())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in a tree, and those that bitsandbytes hangs on them."""
    if isinstance(value, torch.Tensor):
        yield value
        for name in ("quant_state", "SCB"):
            yield from tensors(getattr(value, name, None))
    elif isinstance(value, dict):
        for one in value.values():
            yield from tensors(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors(one)
    elif type(value).__name__ == "QuantState":
        yield from tensors([value.absmax, value.code, value.offset, value.state2])


def size(value: Any) -> int:
    """Bytes of all storages in a tree, each counted once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(value)}.values())


def saved_by(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, int]:
    """The loss, and the bytes that autograd keeps for its backward pass beside the parameters."""
    own = {t.untyped_storage().data_ptr() for t in tensors([*model.parameters(), *model.buffers()])}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**batch, fused_lm_head=True).loss
    return loss, sum(storage.nbytes() for storage in kept.values())


def measure(plan: TrainPlan) -> dict[str, int]:
    """Load the model, make two steps, the second as the plan says, and tell what they took."""
    compute = torch.bfloat16 if plan.training.dtype == "BFloat16" else torch.float32
    full = plan.tuner.type == "Full"
    torch.ones(8, 8) @ torch.ones(8, 8)  # threads and buffers of the libraries
    before = resident()
    model: Any = load_model(
        plan.model,
        torch.float32 if full else compute,
        quantization=tuner.quantization_config(plan.tuner, compute),
        device="cpu" if plan.tuner.type == "QLoRA" else None,
    )
    if not full:
        model = tuner.add_adapter(model, plan.tuner, float32=True)
    add_fused_lm_head(model if full else model.get_base_model(), outputs=("log_probs",))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.randint(0, model.config.vocab_size, (plan.training.micro_batch_size, plan.training.max_length))
    result: dict[str, int] = {}
    for checkpointing in (not plan.training.gradient_checkpointing, plan.training.gradient_checkpointing):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()
        optimizer.zero_grad()
        release()
        with watched() as most:
            with torch.autocast("cpu", compute, enabled=compute != torch.float32):
                loss, saved = saved_by(model, {"input_ids": ids, "labels": ids})
            loss.backward()
            optimizer.step()
        del loss
        result["checkpointed" if checkpointing else "saved"] = saved
    result["resident"] = most[0] - before
    parameters = list(model.parameters())
    result["weights"] = size(parameters)
    result["gradients"] = size([p.grad for p in parameters if p.grad is not None])
    result["optimizer"] = size([s for p in optimizer.state.values() for s in p.values() if s.ndim])
    release()
    result["held"] = resident() - before
    result["libraries"] = before
    return result


def release() -> None:
    """Give freed memory back to the system."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def count(config: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a model, of its linear modules by name, and of an adapter of rank 1, as the libraries make them."""
    made = AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
    head, linears = model.get_output_embeddings(), dict[str, list[int]]()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            size, sides = linears.get(last := name.rsplit(".", 1)[-1], [0, 0])
            linears[last] = [size + module.weight.numel(), sides + sum(module.weight.shape)]
    parameters = sum(p.numel() for p in model.parameters())
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
    adapters = sum(p.numel() for p in adapted.parameters() if p.requires_grad) // 2
    return {"parameters": parameters, "linears": linears, "adapters": adapters}


def main(folder: Path) -> None:
    """Measure each plan in a process of its own, forked after the imports, one after the other."""
    for path in folder.glob("configs/*.json"):
        path.with_suffix(".result").write_text(json.dumps(count(json.loads(path.read_text()))))
    config = AutoConfig.for_model(**json.loads((folder / "config.json").read_text()))
    for path in (None, *sorted(folder.glob("plans/*.json"))):
        child = os.fork()
        if not child:
            if path is None:
                AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
            else:
                result = measure(TrainPlan.model_validate_json(path.read_bytes()))
                path.with_suffix(".result").write_text(json.dumps(result))
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(f"{path or 'making the model'} failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
