"""spec.podTemplate: what users add to the pods."""

from __future__ import annotations

from tunesmith.api.job import PodTemplate
from tunesmith.children.meta import Object

# A node that does not answer is left after half a minute, not after the five that are usual: its devices' peers wait.
LOST_NODE = [
    {"key": f"node.kubernetes.io/{taint}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}
    for taint in ("not-ready", "unreachable")
]
# Fields of the pod's spec that are taken as they are.
PASSED_ON = (
    "serviceAccountName",
    "nodeSelector",
    "affinity",
    "topologySpreadConstraints",
    "priorityClassName",
    "schedulerName",
    "runtimeClassName",
)


def customised(template: Object, wanted: PodTemplate) -> Object:
    """The pod template with what the user adds; the first container is the trainer. Ours comes last where the two
    speak of the same label.
    """
    body, meta, spec = wanted.body(), template["metadata"], template["spec"]
    trainer, *others = spec["containers"]
    trainer = {
        **trainer,
        **({"image": wanted.image} if wanted.image else {}),
        "env": [*trainer.get("env", []), *body.get("env", [])],
        "volumeMounts": [*trainer.get("volumeMounts", []), *body.get("volumeMounts", [])],
    }
    own = {"annotations": wanted.annotations} if wanted.annotations else {}
    # A taint that the user speaks of is tolerated as the user says.
    keys = {one.key for one in wanted.tolerations}
    usual = [] if None in keys else [one for one in LOST_NODE if one["key"] not in keys]
    more = {key: body[key] for key in PASSED_ON if key in body}
    return {
        "metadata": {**meta, **own, "labels": {**(wanted.labels or {}), **meta["labels"]}},
        "spec": {
            **spec,
            **more,
            "containers": [trainer, *others],
            "volumes": [*spec["volumes"], *body.get("volumes", [])],
            "tolerations": [*body.get("tolerations", []), *usual],
        },
    }
