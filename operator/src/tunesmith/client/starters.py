"""Starter files, one per method and kind. Each is valid; a test sees to it."""

from __future__ import annotations

from typing import Any

import yaml

from tunesmith.api.base import API_VERSION

Object = dict[str, Any]
MODEL = "hf://Qwen/Qwen2.5-0.5B-Instruct"

# What a method needs beside its name, and the columns of its rows.
METHODS: dict[str, tuple[Object, Object, str]] = {
    "PreTraining": ({}, {}, 'text: {"text": "…"}'),
    "SFT": ({}, {}, 'conversations: {"messages": [{"role": "user", "content": "…"}, …]}, or query and response'),
    "DPO": ({"dpo": {"beta": 0.1}}, {}, "pairs: query, chosen, rejected"),
    "KTO": ({}, {"microBatchSize": 2}, "answers that are good or bad: query, response, label"),
    "CPO": ({}, {}, "pairs: query, chosen, rejected"),
    "SimPO": ({}, {}, "pairs: query, chosen, rejected"),
    "ORPO": ({}, {}, "pairs: query, chosen, rejected"),
    "RewardModel": ({}, {}, "pairs: query, chosen, rejected"),
    "GRPO": (
        {
            "grpo": {
                "numGenerations": 4,
                "rewards": [{"type": "Accuracy"}],
                "rollout": {"maxCompletionLength": 256},
            }
        },
        {"maxLength": 1024},
        "prompts: query, and solution for the reward Accuracy",
    ),
    "PPO": (
        {"ppo": {"rewards": [{"type": "Accuracy"}], "rollout": {"maxCompletionLength": 256}}},
        {"maxLength": 1024},
        "prompts: query, and solution for the reward Accuracy",
    ),
    "GKD": (
        {"gkd": {"teacher": {"uri": "hf://Qwen/Qwen2.5-7B-Instruct"}, "maxCompletionLength": 256}},
        {"maxLength": 1024},
        "conversations: query and response; a teacher of the same vocabulary",
    ),
    "Classification": (
        {"classification": {"problem": "SingleLabel", "labels": ["negative", "positive"]}},
        {},
        "texts: query, label",
    ),
    "Embedding": ({"embedding": {"loss": "InfoNCE"}}, {}, "texts that are alike: query, positive"),
    "Reranker": ({}, {}, "queries and documents: query, positive, negatives"),
}


def train(name: str, method: str, **spec: Any) -> Object:
    """A FineTuneJob by a method; `spec` holds fields that the user gave."""
    options, training, _ = METHODS[method]
    body = {
        "model": {"uri": MODEL},
        "datasets": [{"uri": f"configmap://{name}-data/train.jsonl"}],
        "method": {"type": method, **options},
        "tuner": {"type": "LoRA"},
        "training": {"epochs": 1, "globalBatchSize": 16, **training},
        "resources": {"limits": {"nvidia.com/gpu": 1}},
    }
    return custom("FineTuneJob", name, {**body, **spec})


def merge(name: str) -> Object:
    """A MergeJob."""
    adapters = [{"fineTuneJobRef": {"name": "my-job"}}]
    return custom("MergeJob", name, {"model": {"uri": MODEL}, "adapters": adapters})


def infer(name: str) -> Object:
    """An InferenceJob."""
    spec = {
        "model": {"uri": MODEL},
        "adapter": {"fineTuneJobRef": {"name": "my-job"}},
        "datasets": [{"uri": f"configmap://{name}-data/test.jsonl"}],
        "generation": {"maxTokens": 256},
        "resources": {"limits": {"nvidia.com/gpu": 1}},
    }
    return custom("InferenceJob", name, spec)


def serve(name: str) -> Object:
    """A ModelDeployment."""
    adapters = [{"name": "my-adapter", "fineTuneJobRef": {"name": "my-job"}}]
    limits = {"limits": {"nvidia.com/gpu": 1}}
    return custom("ModelDeployment", name, {"model": {"uri": MODEL}, "adapters": adapters, "resources": limits})


def custom(kind: str, name: str, spec: Object) -> Object:
    """A resource."""
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


KINDS = {"MergeJob": merge, "InferenceJob": infer, "ModelDeployment": serve}


def text(what: str, name: str) -> str:
    """The file, with what one must know to fill it in."""
    if what in KINDS:
        head = f"# {what}: every field is described by `kubectl explain {what.lower()}.spec`."
        return f"{head}\n{_yaml(KINDS[what](name))}"
    head = (
        f"# {what} learns from {METHODS[what][2]} (docs/methods.md).\n"
        "# Addresses of models and data: hf://org/name, s3://bucket/path, pvc://claim/path, configmap://name/key.\n"
        "# Every field is described by `kubectl explain finetunejob.spec`. Without a GPU, leave out its limit."
    )
    return f"{head}\n{_yaml(train(name, what))}"


def _yaml(body: Object) -> str:
    return yaml.safe_dump(body, sort_keys=False, width=110, allow_unicode=True)
