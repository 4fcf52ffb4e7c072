"""Model FLOPs utilisation (MFU): what part of the devices' peak the model's own arithmetic is (PaLM, arXiv 2204.02311,
appendix B). Activations that are computed anew do not count, and attention's scores are left out: it is a lower bound.
"""

from __future__ import annotations

import json
from pathlib import Path

from tunesmith.training.architecture import ModelFacts, facts
from tunesmith.training.estimating import trained
from tunesmith.training.plan import TrainPlan

ONE_PASS = ("PreTraining", "SFT", "RewardModel", "Classification", "Embedding", "Reranker")
"""Methods in which each token passes the model once, and no other model."""
# FLOP/s in bfloat16, dense, by NVIDIA's data sheets; the longer name comes first.
PEAKS = {
    "GH200": 989e12, "GB200": 2500e12, "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12,
    "H100": 989e12, "H800": 989e12, "A100": 312e12, "A800": 312e12, "A10G": 70e12, "A10": 125e12, "A30": 165e12,
    "A40": 149.7e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12,
}  # fmt: skip


def gpu() -> str | None:
    """Name of this process's GPU."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def peak(device: str) -> float | None:
    """FLOP/s of a GPU by its name; None: not known."""
    return next((value for name, value in PEAKS.items() if name in device), None)


def per_token(plan: TrainPlan, found: ModelFacts) -> float:
    """FLOPs that the model itself needs to learn from one token: 2 a weight forward, 2 for the activations' gradients,
    2 for the gradients of those that are trained. Of the experts, those that a token passes.
    """
    passed = found.parameters - (0 if found.tied else found.embeddings)
    if found.experts:
        passed -= found.experts * (1 - found.experts_per_token / found.expert_count)
    number = trained(plan, found)
    if plan.tuner.type == "Full":
        return 4 * passed + 2 * passed * min(1.0, number / found.parameters)
    return 4 * passed + 6 * number


def most_tokens(plan: TrainPlan, device: str | None) -> float | None:
    """Tokens per second at the peak of all devices. None on CPU, in float32, and where the work of a token or the peak
    is not known.
    """
    limit = peak(device) if device and plan.training.dtype != "Float32" else None
    if limit is None or plan.method.type not in ONE_PASS:
        return None
    path = Path(plan.model.path) / "config.json"
    found, _ = facts(json.loads(path.read_text())) if path.is_file() else (None, "")
    if found is None or found.vision:
        return None
    return limit * plan.world_size * plan.distribution.devices / per_token(plan, found)
