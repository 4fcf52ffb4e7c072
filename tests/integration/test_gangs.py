"""PodGroups are what Volcano's and scheduler-plugins' own Go types can hold."""

from __future__ import annotations

import subprocess

import pytest
from integration.harness import read_by_go
from tunesmith.api.finetunejob import FineTuneJob
from tunesmith.children.gang import SCHEDULERS, in_gang, pod_group
from tunesmith.children.meta import Owner
from tunesmith.settings import load
from tunesmith_cluster import build
from unit.operator.builders import train

OWNER = Owner("FineTuneJob", "ns", "x", "uid")


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_pod_group_is_what_its_scheduler_reads_and_its_pods_name_it(scheduler: str) -> None:
    settings = load({"TUNESMITH_GANG_SCHEDULER": scheduler})
    spec = FineTuneJob.model_validate(train(podTemplate={"priorityClassName": "high"})).spec
    made = pod_group(OWNER, 1, 4, spec, settings)
    assert made is not None
    read = read_by_go(build.PODGROUP, made)
    assert read["group"]["spec"] == made["spec"]
    assert read["group"]["metadata"]["ownerReferences"] == made["metadata"]["ownerReferences"]

    pod = in_gang(OWNER, 1, {"metadata": {"labels": {}}, "spec": {}}, settings)
    names = {**pod["metadata"]["labels"], **pod["metadata"].get("annotations", {})}
    assert names == {read["key"]: made["metadata"]["name"]}

    with pytest.raises(subprocess.CalledProcessError) as refused:
        read_by_go(build.PODGROUP, {**made, "spec": {**made["spec"], "minMembers": 4}})
    assert "minMembers" in refused.value.stderr
