"""PodGroups: the pods of an attempt start together or not at all. For clusters that run one of the two schedulers."""

from __future__ import annotations

from tunesmith.api.job import JobSpec
from tunesmith.children.meta import ATTEMPT_LABEL, Object, Owner, job_name
from tunesmith.settings import Settings

# https://volcano.sh/en/docs/podgroup/
VOLCANO_ANNOTATION = "scheduling.k8s.io/group-name"
# https://scheduler-plugins.sigs.k8s.io/docs/kep/42-podgroup-coscheduling/
COSCHEDULING_LABEL = "scheduling.x-k8s.io/pod-group"
SCHEDULERS = {"Volcano": "volcano", "Coscheduling": "scheduler-plugins-scheduler"}


def pod_group(owner: Owner, attempt: int, nodes: int, spec: JobSpec, settings: Settings) -> Object | None:
    """The PodGroup of an attempt; None where the pods are scheduled one by one."""
    name, labels = job_name(owner, attempt), {ATTEMPT_LABEL: str(attempt)}
    match settings.gang_scheduler:
        case "Volcano":
            group = owner.child("scheduling.volcano.sh/v1beta1", "PodGroup", name, labels)
            priority = spec.pod_template.priority_class_name
            more = {"priorityClassName": priority} if priority else {}
            return {**group, "spec": {"minMember": nodes, **more}}
        case "Coscheduling":
            group = owner.child("scheduling.x-k8s.io/v1alpha1", "PodGroup", name, labels)
            return {**group, "spec": {"minMember": nodes, "scheduleTimeoutSeconds": 300}}
        case _:
            return None


def in_gang(owner: Owner, attempt: int, template: Object, settings: Settings) -> Object:
    """The pod template as a member of its PodGroup."""
    if settings.gang_scheduler == "None":
        return template
    name, meta, spec = job_name(owner, attempt), template["metadata"], template["spec"]
    if settings.gang_scheduler == "Volcano":
        meta = {**meta, "annotations": {**meta.get("annotations", {}), VOLCANO_ANNOTATION: name}}
    else:
        meta = {**meta, "labels": {**meta["labels"], COSCHEDULING_LABEL: name}}
    return {**template, "metadata": meta, "spec": {"schedulerName": SCHEDULERS[settings.gang_scheduler], **spec}}
