"""What a job made is pushed by a pod of its own to S3 (moto), and a deployment's pod fetches it from there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from integration.harness import Kubectl, custom, eventually, serve
from unit.agent.servers import s3_store

ADDRESS = "{.items[0].status.addresses[?(@.type=='InternalIP')].address}"


def merge(**spec: Any) -> dict[str, Any]:
    made = {"model": {"uri": "file:///behave/make"}, "adapters": [{"uri": "file:///adapter"}]}
    return custom("MergeJob", "x", {**made, **spec})


@contextmanager
def reachable_bucket(kubectl: Kubectl) -> Iterator[Any]:
    """(name, boto3's client) of a bucket that pods reach, whose keys are in the Secret `bucket`."""
    with s3_store("us-east-1", "0.0.0.0") as (endpoint, client):
        name, node = kubectl.namespace, kubectl("get", "node", "-o", f"jsonpath={ADDRESS}")
        client.create_bucket(Bucket=name)
        keys = {
            "accessKeyId": "me",
            "secretAccessKey": "hush",
            "endpoint": f"http://{node}:{endpoint.rsplit(':', 1)[1]}",
        }
        literals = [f"--from-literal={key}={value}" for key, value in keys.items()]
        kubectl("create", "secret", "generic", "bucket", *literals)
        yield name, client


@pytest.fixture
def bucket(kubectl: Kubectl) -> Iterator[Any]:
    with reachable_bucket(kubectl) as found:
        yield found


def test_what_a_job_made_is_pushed_and_a_deployment_reads_it_from_there(
    kubectl: Kubectl, running: object, bucket: Any
) -> None:
    name, client = bucket
    there = {"uri": f"s3://{name}/team/model", "secretRef": {"name": "bucket"}}
    nobody = {"uri": f"s3://{name}-not-there/model", "secretRef": {"name": "bucket"}}
    kubectl.apply(merge(output={"push": [there]}, cleanPodPolicy="All"))
    kubectl.wait("mj", "x", "Completed")
    status = kubectl.wait("mj", "x", "Pushed", "Pushed")["status"]
    [pushed] = status["pushed"]
    assert pushed["uri"] == there["uri"]
    assert pushed["digest"] == status["artifact"]["digest"]
    listed = client.list_objects_v2(Bucket=name)["Contents"]
    assert [one["Key"].rsplit("/", 1)[1] for one in listed] == ["config.json", "manifest.json", "model.safetensors"]
    eventually(lambda: kubectl.names("job") == [], lambda: kubectl("get", "job"))
    kubectl.apply(serve("chat", model=there))

    def fetched() -> Any:
        pods = [pod for pod in kubectl.list("pod") if pod["metadata"]["labels"].get("tunesmith.io/name") == "chat"]
        states = [one for pod in pods for one in pod["status"].get("initContainerStatuses", [])]
        return next((s["state"].get("terminated") for s in states if s["name"] == "fetch-0"), None)

    ended = eventually(fetched, lambda: kubectl("describe", "pod", "-l", "tunesmith.io/name=chat"))
    assert ended["exitCode"] == 0, ended
    # A destination that is added to a job that has ended, and is refused.
    patch = {"spec": {"output": {"push": [there, nobody]}}}
    kubectl("patch", "mj", "x", "--type=merge", "-p", json.dumps(patch))
    refused = kubectl.wait("mj", "x", "PushRefused", "Pushed")
    message = kubectl.condition("mj", "x", "Pushed")["message"]
    assert f"{nobody['uri']}: " in message
    assert "check the address. Pushing needs `accessKeyId` and `secretAccessKey`" in message
    assert [one["uri"] for one in refused["status"]["pushed"]] == [there["uri"]]
    [job] = kubectl.names("job")
    assert f"delete Job {job}" in message
    client.create_bucket(Bucket=f"{name}-not-there")
    kubectl("delete", "job", job)
    again = kubectl.wait("mj", "x", "Pushed", "Pushed")
    assert [one["uri"] for one in again["status"]["pushed"]] == [there["uri"], nobody["uri"]]
    assert kubectl.condition("mj", "x")["status"] == "True"
    store = {"spec": {"output": {"uri": "pvc://elsewhere", "push": []}}}
    said = kubectl("patch", "mj", "x", "--type=merge", "-p", json.dumps(store), check=False)
    assert "cannot be changed, but for suspend, ttlSecondsAfterFinished and output.push" in said
