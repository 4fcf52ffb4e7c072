"""PodGroups are what Volcano's and scheduler-plugins' own Go types can hold."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from tunesmith.api.finetunejob import FineTuneJob
from tunesmith.children.gang import SCHEDULERS, in_gang, pod_group
from tunesmith.children.meta import Owner
from tunesmith.settings import load
from tunesmith_cluster import build, golang
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.progress import Reporter
from unit.operator.builders import train

OWNER = Owner("FineTuneJob", "ns", "x", "uid")


def read_by_its_makers(body: dict[str, Any]) -> dict[str, Any]:
    """What their types, which know no other field, read; raises CalledProcessError. {group, key: how a pod names it}"""
    paths = Paths.from_environment()
    if not build.is_built(paths.cache, build.PODGROUP):
        build.build(paths.cache, build.PODGROUP, golang.ensure(paths, Reporter()))
    binary = build.binary(paths.cache, "podgroup")
    done = subprocess.run([binary], input=json.dumps(body), capture_output=True, text=True, check=True)
    read: dict[str, Any] = json.loads(done.stdout)
    return read


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_pod_group_is_what_its_scheduler_reads_and_its_pods_name_it(scheduler: str) -> None:
    settings = load({"TUNESMITH_GANG_SCHEDULER": scheduler})
    spec = FineTuneJob.model_validate(train(podTemplate={"priorityClassName": "high"})).spec
    made = pod_group(OWNER, 1, 4, spec, settings)
    assert made is not None
    read = read_by_its_makers(made)
    assert read["group"]["spec"] == made["spec"]
    assert read["group"]["metadata"]["ownerReferences"] == made["metadata"]["ownerReferences"]

    pod = in_gang(OWNER, 1, {"metadata": {"labels": {}}, "spec": {}}, settings)
    names = {**pod["metadata"]["labels"], **pod["metadata"].get("annotations", {})}
    assert names == {read["key"]: made["metadata"]["name"]}

    with pytest.raises(subprocess.CalledProcessError) as refused:
        read_by_its_makers({**made, "spec": {**made["spec"], "minMembers": 4}})
    assert "minMembers" in refused.value.stderr
