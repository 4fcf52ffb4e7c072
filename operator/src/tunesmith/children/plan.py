"""The ConfigMap with the resolved plan of an attempt."""

from __future__ import annotations

import json

from tunesmith.children.meta import ATTEMPT_LABEL, Object, Owner, job_name
from tunesmith.training.plan import AnyPlan


def plan_config_map(owner: Owner, attempt: int, plan: AnyPlan) -> Object:
    """Immutable: what an attempt does is fixed when it starts, whatever becomes of the operator's settings."""
    return {
        **owner.child("v1", "ConfigMap", job_name(owner, attempt), {ATTEMPT_LABEL: str(attempt)}),
        "immutable": True,
        "data": {"plan.json": json.dumps(plan.body(), indent=2, sort_keys=True)},
    }
