"""When is a live child what it should be? A wrong No means a write at every pass, a wrong Yes a drift unseen."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tunesmith.kube.compare import covers, drops


@pytest.mark.parametrize(
    ("live", "wanted", "same"),
    [
        ({"a": 1, "filled": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({}, {"a": {}}, False),
        ({"a": [{"n": "x", "more": 1}]}, {"a": [{"n": "x"}]}, True),
        ({"a": [1, 2]}, {"a": [1]}, False),
        ({}, {"a": []}, True),
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, {"limits": {"cpu": "1000m", "memory": "1024Mi"}}, True),
        ({"limits": {"cpu": "1"}}, {"limits": {"cpu": "2"}}, False),
        ({}, {"limits": {"cpu": 1}}, False),
        ({"averageValue": "1"}, {"averageValue": "1000m"}, True),
        ({"averageValue": "1k"}, {"averageValue": "1000"}, True),
        ({"averageValue": "1"}, {"averageValue": "800m"}, False),
        ({}, {"averageValue": "1"}, False),
        ({}, {"value": ""}, True),
        ({"value": "x"}, {"value": ""}, False),
    ],
)
def test_what_is_filled_in_does_not_matter_and_what_is_wanted_does(live: Any, wanted: Any, same: bool) -> None:
    assert covers(live, wanted) is same


WANTED: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "x", "labels": {"a": "1"}, "ownerReferences": [{"uid": "u", "name": "o"}]},
    "spec": {
        "template": {
            "spec": {
                "containers": [
                    {
                        "name": "engine",
                        "ports": [{"name": "http", "containerPort": 8000}],
                        "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
                        "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
                        "args": ["a", "b"],
                    }
                ],
                "volumes": [{"name": "tmp", "emptyDir": {}}],
            }
        }
    },
}
# As the API server writes it for WANTED.
FIELDS = {
    "f:metadata": {"f:labels": {"f:a": {}}, "f:ownerReferences": {'k:{"uid":"u"}': {}}},
    "f:spec": {
        "f:template": {
            "f:spec": {
                "f:containers": {
                    'k:{"name":"engine"}': {
                        ".": {},
                        "f:name": {},
                        "f:args": {},
                        "f:lifecycle": {"f:preStop": {"f:sleep": {"f:seconds": {}}}},
                        "f:ports": {
                            'k:{"containerPort":8000,"protocol":"TCP"}': {
                                ".": {},
                                "f:containerPort": {},
                                "f:name": {},
                            }
                        },
                        "f:resources": {"f:limits": {"f:cpu": {}, "f:memory": {}}},
                    }
                },
                "f:volumes": {'k:{"name":"tmp"}': {".": {}, "f:emptyDir": {}, "f:name": {}}},
            }
        }
    },
}


def live(**entry: Any) -> dict[str, Any]:
    body = copy.deepcopy(WANTED)
    body["spec"]["template"]["spec"]["containers"][0]["image"] = "filled in"
    ours = {"manager": "tunesmith", "operation": "Apply", "apiVersion": "apps/v1", "fieldsV1": FIELDS, **entry}
    kubelet = {"manager": "k", "operation": "Update", "apiVersion": "apps/v1", "fieldsV1": {"f:status": {"f:x": {}}}}
    body["metadata"]["managedFields"] = [kubelet, ours]
    return body


@pytest.mark.parametrize(
    ("path", "gone"),
    [
        ((), False),
        (("lifecycle",), True),
        (("resources",), True),
        (("resources", "limits", "memory"), True),
        (("args",), True),
    ],
)
def test_what_is_not_wanted_any_more_is_taken_away(path: tuple[str, ...], gone: bool) -> None:
    wanted = copy.deepcopy(WANTED)
    target = wanted["spec"]["template"]["spec"]["containers"][0]
    for part in path[:-1]:
        target = target[part]
    for last in path[-1:]:
        del target[last]
    assert covers(live(), wanted), "which is why nobody would write"
    assert drops(live(), wanted, "tunesmith") is gone


def test_what_others_have_written_is_not_ours_to_take_away() -> None:
    less = {**WANTED, "spec": {}}
    assert drops(live(), less, "tunesmith")
    assert not drops(live(manager="argocd"), less, "tunesmith")
    assert not drops(live(operation="Update"), less, "tunesmith")
    assert not drops(live(subresource="status"), less, "tunesmith")
    assert not drops(live(apiVersion="apps/v1beta1"), less, "tunesmith")
