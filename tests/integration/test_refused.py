"""What the API server itself refuses, and how it says so."""

from __future__ import annotations

from typing import Any

import pytest
from integration.harness import Kubectl, custom, serve, train

KEDA = {"scaler": "KEDA", "prometheus": "http://p:9090", "minReplicas": 0, "maxReplicas": 3}
ADAPTER = {"name": "lora1", "uri": "pvc://store/x"}
ROWS = {"uri": "pvc://store/test.jsonl"}


def infer(name: str, **spec: Any) -> dict[str, Any]:
    return custom("InferenceJob", name, {"model": {"uri": "hf://a/b"}, "datasets": [ROWS], **spec})


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("an unknown field", train("x", tunner={"type": "LoRA"}), 'unknown field "spec.tunner"'),
    ("a wrong enum", train("x", method={"type": "SFTT"}), 'spec.method.type: Unsupported value: "SFTT"'),
    ("a negative rank", train("x", tuner={"rank": -8}), "spec.tuner.rank: Invalid value: -8"),
    ("rank of a full tuner", train("x", tuner={"type": "Full", "rank": 8}), "are only for types LoRA and QLoRA"),
    ("no dataset", train("x", datasets=[]), "spec.datasets"),
    ("no model", train("x", model={}), "exactly one of uri, fineTuneJobRef and mergeJobRef must be set"),
    (
        "two models",
        train("x", model={"uri": "hf://a/b", "mergeJobRef": {"name": "m"}}),
        "exactly one of uri, fineTuneJobRef and mergeJobRef must be set",
    ),
    ("an address of no known kind", train("x", model={"uri": "ftp://a/b"}), "spec.model.uri"),
    ("https without a digest", train("x", datasets=[{"uri": "https://a/b.jsonl"}]), "spec.datasets[0].uri"),
    ("options of another method", train("x", method={"type": "PreTraining", "sft": {}}), "sft is only for type SFT"),
    (
        "batches that do not divide",
        train("x", training={"globalBatchSize": 10, "microBatchSize": 4}),
        "globalBatchSize must be a multiple of microBatchSize",
    ),
    ("a learning rate of zero", train("x", training={"learningRate": 0}), "spec.training.learningRate"),
    (
        "two ways to say when to write checkpoints",
        train("x", checkpoint={"everySteps": 5, "everyMinutes": 5}),
        "at most one of everySteps and everyMinutes must be set",
    ),
    (
        "a variable that is ours",
        train("x", podTemplate={"env": [{"name": "MASTER_ADDR", "value": "x"}]}),
        "this variable is set by tunesmith",
    ),
    ("more nodes at least than at most", train("x", elastic={"minNodes": 2}), "elastic.minNodes must be at most nodes"),
    (
        "offload without ZeRO",
        train("x", distribution={"strategy": "DDP", "offload": "All"}),
        "offload needs strategy Auto, ZeRO2 or ZeRO3",
    ),
    ("a name too long for its children", train("x" * 44), "metadata.name is too long: at most 43 characters"),
    ("a name with a dot", train("a.b"), "metadata.name must be a DNS label"),
    ("two adapters of one name", serve("x", adapters=[ADAPTER, ADAPTER]), "Duplicate value"),
    (
        "an adapter named as the base",
        serve("x", adapters=[{**ADAPTER, "name": "base"}]),
        "cannot have the name of the model",
    ),
    (
        "a canary without a gateway",
        serve("x", adapters=[{**ADAPTER, "canary": {"uri": "pvc://store/2"}}]),
        "adapters[].canary needs gateway",
    ),
    (
        "no pod at all, and nobody who holds requests",
        serve("x", autoscaling={**KEDA, "queueLength": 4}),
        "autoscaling.minReplicas 0 needs gateway",
    ),
    (
        "no pod at all, and nobody who looks at the queue",
        serve("x", autoscaling={**KEDA, "cacheUsagePercent": 80}, gateway={}),
        "autoscaling.minReplicas 0 needs queueLength",
    ),
    (
        "a canary from nowhere",
        serve("x", adapters=[{**ADAPTER, "canary": {}}], gateway={}),
        "exactly one of uri and fineTuneJobRef",
    ),
    ("an adapter from nowhere", serve("x", adapters=[{"name": "a"}]), "exactly one of uri and fineTuneJobRef"),
    (
        "a merge without adapters",
        custom("MergeJob", "x", {"model": {"uri": "hf://a/b"}, "adapters": []}),
        "spec.adapters",
    ),
    ("nothing to ask", infer("x", datasets=[]), "spec.datasets"),
    (
        "two adapters in one",
        infer("x", adapter={"uri": "hf://a/c", "fineTuneJobRef": {"name": "y"}}),
        "exactly one of uri and fineTuneJobRef must be set",
    ),
    ("a share above all", infer("x", generation={"topP": 1.5}), "spec.generation.topP"),
    ("weights of rows that are asked once each", infer("x", datasets=[{**ROWS, "weight": 2}]), "weight"),
]


@pytest.mark.parametrize(("body", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_bad_input_is_refused_at_apply(asked: Kubectl, body: dict[str, Any], message: str) -> None:
    said = asked("apply", "--dry-run=server", "-f", "-", stdin=body, check=False)
    assert message in said


@pytest.mark.parametrize(
    ("body", "change", "message"),
    [
        (train("x"), {"nodes": 2}, "the spec of a FineTuneJob cannot be changed"),
        (
            custom("MergeJob", "x", {"model": {"uri": "hf://a/b"}, "adapters": [{"uri": "hf://a/c"}]}),
            {"dtype": "Float32"},
            "the spec of a MergeJob cannot be changed",
        ),
        (infer("x"), {"batchSize": 2}, "the spec of an InferenceJob cannot be changed"),
    ],
)
def test_the_spec_of_a_job_cannot_be_changed(
    kubectl: Kubectl, body: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    kubectl.apply(body)
    body["spec"] |= change
    assert message in kubectl("apply", "-f", "-", stdin=body, check=False)


def test_every_default_is_visible_in_the_stored_resource(kubectl: Kubectl) -> None:
    kubectl.apply(train("x"))
    spec = kubectl.get("finetunejob", "x")["spec"]
    assert spec["tuner"]["type"] == "LoRA"
    assert spec["tuner"]["freeze"] == {"languageModel": False, "towers": True, "aligner": True}
    assert spec["training"]["globalBatchSize"] == 16
    assert spec["nodes"] == 1


def test_explain_describes_every_field(asked: Kubectl) -> None:
    text = asked("explain", "ftj.spec.training", "--recursive=false")
    assert "Rows of one optimizer step, over all processes" in text
