"""Over which devices and pods one copy of a model is spread."""

from __future__ import annotations

from tunesmith.api.modeldeployment import ModelDeploymentSpec
from tunesmith.api.quantity import amount
from tunesmith.training.matrix import GPUS


def gpus(spec: ModelDeploymentSpec) -> int:
    """GPUs of a pod."""
    limits = spec.resources.limits or {}
    return next((int(amount(limits[name])) for name in GPUS if name in limits), 0)


def parallelism(spec: ModelDeploymentSpec) -> tuple[int, int]:
    """(tensor, pipeline): devices that share a layer, and stages."""
    engine, mine = spec.engine, max(1, gpus(spec))
    everything = mine * engine.nodes
    if engine.tensor_parallel and engine.pipeline_parallel:
        return engine.tensor_parallel, engine.pipeline_parallel
    if engine.tensor_parallel:
        whole = engine.tensor_parallel % engine.nodes == 0 and engine.tensor_parallel >= everything
        return engine.tensor_parallel, 1 if whole else engine.nodes
    if engine.pipeline_parallel:
        return max(1, everything // engine.pipeline_parallel), engine.pipeline_parallel
    return mine, engine.nodes


def problem(spec: ModelDeploymentSpec) -> str | None:
    """Why vLLM could not spread the model so, and what to do. None: it can."""
    (tensor, pipeline), nodes, mine = parallelism(spec), spec.engine.nodes, gpus(spec)
    world = tensor * pipeline
    said = f"spec.engine: {tensor} (tensorParallel) x {pipeline} (pipelineParallel) = {world} devices"
    if world % nodes:
        return f"{said} cannot be divided over {nodes} nodes: choose numbers whose product is a multiple of {nodes}"
    if mine and world > mine * nodes:
        return f"{said}, but {nodes} nodes of {mine} GPUs have {mine * nodes}: raise resources.limits or nodes"
    return None
