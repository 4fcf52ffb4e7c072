"""The ConfigMap with a job's resolved plan."""

from __future__ import annotations

import json

from tunesmith.children.meta import Object, Owner, plan_name
from tunesmith.training.plan import MergePlan, TrainPlan


def plan_config_map(owner: Owner, plan: TrainPlan | MergePlan) -> Object:
    """Immutable: what a run does is fixed when it starts, whatever becomes of the operator's settings."""
    return {
        **owner.child("v1", "ConfigMap", plan_name(owner)),
        "immutable": True,
        "data": {"plan.json": json.dumps(plan.body(), indent=2, sort_keys=True)},
    }
