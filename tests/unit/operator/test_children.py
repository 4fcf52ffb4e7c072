"""What is built for the pods of a job: the user's additions, gangs, and claims that fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tunesmith.api.finetunejob import FineTuneJob
from tunesmith.api.job import PodTemplate
from tunesmith.api.mergejob import MergeJob
from tunesmith.api.modeldeployment import ModelDeployment
from tunesmith.children.gang import pod_group
from tunesmith.children.gateway import engines_name
from tunesmith.children.inspect import inspect_job
from tunesmith.children.job import merge_job, train_job
from tunesmith.children.meta import Object, Owner
from tunesmith.children.pods import Input
from tunesmith.children.serving import deployment, service_name
from tunesmith.children.template import customised
from tunesmith.prerequisites import Wanted, refusal, wanted
from tunesmith.serving.contract import State
from tunesmith.settings import Settings, load
from tunesmith.training.plan import Job
from tunesmith.training.planning import merge_plan, train_plan
from unit.operator.builders import merge, serve, train

OWNER = Owner("FineTuneJob", "ns", "x", "uid")


def template() -> Object:
    return {
        "metadata": {"labels": {"tunesmith.io/name": "x"}},
        "spec": {"containers": [{"name": "trainer", "image": "ours"}], "volumes": [{"name": "tmp"}]},
    }


def built(settings: Settings, **spec: Any) -> Object:
    body = FineTuneJob.model_validate(train(**spec)).spec
    plan = train_plan(Job(namespace="ns", name="x", uid="uid"), body, {}, "pvc://store")
    return train_job(OWNER, 1, body, plan, settings, None)


def test_the_users_labels_do_not_replace_those_that_we_select_by() -> None:
    found = customised(template(), PodTemplate(labels={"tunesmith.io/name": "y", "team": "a"}))
    assert found["metadata"]["labels"] == {"tunesmith.io/name": "x", "team": "a"}


def test_every_pod_has_the_pull_secrets_of_the_installation_and_its_own() -> None:
    settings = Settings(image_pull_secrets="mirror, shared")
    spec = FineTuneJob.model_validate(train(podTemplate={"imagePullSecrets": ["own", "mirror"]})).spec
    plan = train_plan(Job(namespace="ns", name="x", uid="uid"), spec, {}, "pvc://store")
    wanted = [{"name": name} for name in ("mirror", "shared", "own")]
    for job in (train_job(OWNER, 1, spec, plan, settings, None), inspect_job(OWNER, spec, plan, settings)):
        assert job["spec"]["template"]["spec"]["imagePullSecrets"] == wanted
    serving = ModelDeployment.model_validate(serve()).spec
    state = State(
        revision=1, model_name="base", model_path="/m", max_lora_rank=16, max_loras=1, max_cpu_loras=32, adapters=[]
    )
    engine = deployment(OWNER, serving, state, Input("pvc://store/m"), None, settings)
    assert engine["spec"]["template"]["spec"]["imagePullSecrets"] == wanted[:2]
    assert "imagePullSecrets" not in built(Settings())["spec"]["template"]["spec"]


STATE = State(
    revision=1, model_name="base", model_path="/m", max_lora_rank=16, max_loras=1, max_cpu_loras=32, adapters=[]
)


def served(settings: Settings, **spec: Any) -> Object:
    """The pod of a ModelDeployment."""
    body = ModelDeployment.model_validate(serve(**spec)).spec
    found = deployment(OWNER, body, STATE, Input("pvc://models/m"), None, settings)
    return dict(found["spec"]["template"]["spec"])


def test_no_pod_names_a_user_where_the_cluster_chooses_it() -> None:
    """OpenShift's SCC restricted-v2 refuses a user that is not of the namespace's range."""
    for fixed in (True, False):
        settings = Settings(fixed_user=fixed)
        for pod in (built(settings)["spec"]["template"]["spec"], served(settings)):
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert (pod["securityContext"].keys() & {"runAsUser", "runAsGroup", "fsGroup"} != set()) is fixed


def test_an_engine_listens_on_ipv6_where_pods_have_it_unless_its_user_says_otherwise() -> None:
    def hosts(address: str, **spec: Any) -> list[str]:
        [engine] = served(Settings(pod_ip=address), **spec)["containers"]
        return [argument for argument in engine["args"] if argument.startswith("--host")]

    assert hosts("") == hosts("10.0.0.7") == []
    assert hosts("fd00::7") == ["--host=::"]
    assert hosts("fd00::7", engine={"args": ["--host=fd00::8"]})[-1] == "--host=fd00::8"


def test_everything_of_the_template_is_passed_on() -> None:
    wanted = PodTemplate.model_validate(
        {
            "image": "theirs",
            "serviceAccountName": "trainer",
            "nodeSelector": {"gpu": "h100"},
            "affinity": {"nodeAffinity": {}},
            "priorityClassName": "high",
            "schedulerName": "mine",
            "runtimeClassName": "nvidia",
            "topologySpreadConstraints": [{"maxSkew": 1}],
            "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
        }
    )
    spec = customised(template(), wanted)["spec"]
    assert spec["containers"][0]["image"] == "theirs"
    assert spec["containers"][0]["env"] == [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]
    given = {"serviceAccountName", "nodeSelector", "affinity", "priorityClassName", "schedulerName", "runtimeClassName"}
    assert given <= spec.keys()
    assert spec["topologySpreadConstraints"] == [{"maxSkew": 1}]


@pytest.mark.parametrize(
    ("tolerations", "keys"),
    [
        ([], ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"]),
        ([{"operator": "Exists"}], [None]),
        (
            [{"key": "node.kubernetes.io/unreachable", "operator": "Exists"}],
            ["node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"],
        ),
    ],
)
def test_a_lost_node_is_left_soon_unless_the_user_says_otherwise(
    tolerations: list[dict[str, str]], keys: list[str | None]
) -> None:
    found = customised(template(), PodTemplate.model_validate({"tolerations": tolerations}))
    assert [one.get("key") for one in found["spec"]["tolerations"]] == keys


@pytest.mark.parametrize(
    ("scheduler", "group", "member"),
    [
        ("Volcano", "scheduling.volcano.sh/v1beta1", {"scheduling.k8s.io/group-name": "x-train-1"}),
        ("Coscheduling", "scheduling.x-k8s.io/v1alpha1", {"scheduling.x-k8s.io/pod-group": "x-train-1"}),
    ],
)
def test_the_pods_of_a_gang_name_their_group(scheduler: str, group: str, member: dict[str, str]) -> None:
    settings = load({"TUNESMITH_GANG_SCHEDULER": scheduler})
    spec = FineTuneJob.model_validate(train(podTemplate={"priorityClassName": "high"})).spec
    made = pod_group(OWNER, 1, 4, spec, settings)
    assert made is not None
    assert (made["apiVersion"], made["metadata"]["name"], made["spec"]["minMember"]) == (group, "x-train-1", 4)
    pods = built(settings, nodes=4)["spec"]["template"]
    meta = pods["metadata"]
    assert member.items() <= (meta.get("annotations", {}) | meta["labels"]).items()
    assert pods["spec"]["schedulerName"] in {"volcano", "scheduler-plugins-scheduler"}
    own = built(settings, nodes=4, podTemplate={"schedulerName": "mine"})
    assert own["spec"]["template"]["spec"]["schedulerName"] == "mine"


def test_a_trackers_secret_is_looked_for_and_mounted_into_the_trainer_alone() -> None:
    trackers = [{"type": "TensorBoard"}, {"type": "WandB", "secretRef": {"name": "wandb"}}]
    model = {"uri": "hf://org/base@main", "secretRef": {"name": "hub"}}
    body = train(model=model, training={"reportTo": trackers})
    pod = built(Settings(), model=model, training={"reportTo": trackers})["spec"]["template"]["spec"]
    [trainer], [fetch] = pod["containers"], pod["initContainers"]
    seen = {
        one["name"]: [m["mountPath"] for m in one["volumeMounts"] if "secret" in m["name"]] for one in (trainer, fetch)
    }
    assert seen == {"trainer": ["/mnt/secrets/wandb"], "fetch-0": ["/mnt/secrets/hub"]}
    assert [v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v] == ["hub", "wandb"]
    assert "wandb" not in str(trainer.get("env"))
    named = wanted(FineTuneJob.model_validate(body), "pvc://store")
    assert Wanted("spec.training.reportTo[1]", "Secret", "wandb") in list(named)


def test_calibration_rows_are_looked_for_fetched_with_their_own_secret_and_mounted() -> None:
    rows = {"uri": "hf://org/rows@main", "secretRef": {"name": "hub"}}
    calibration = {"dataset": rows}
    resource = MergeJob.model_validate(
        merge(adapters=[{"uri": "pvc://store/a"}], quantization={"method": "W4A16", "calibration": calibration})
    )
    plan = merge_plan(Job(namespace="ns", name="x", uid="u"), resource.spec, {}, "pvc://store")
    pod = merge_job(OWNER, 1, resource.spec, plan, Settings(), None)["spec"]["template"]["spec"]
    [fetch], [trainer] = pod["initContainers"], pod["containers"]
    assert "hf://org/rows@main" in fetch["command"] + fetch.get("args", [])
    assert "dataset" in fetch["command"] + fetch.get("args", [])
    assert "/mnt/secrets/hub" in [mount["mountPath"] for mount in fetch["volumeMounts"]]
    assert "/mnt/secrets/hub" not in [mount["mountPath"] for mount in trainer["volumeMounts"]]
    assert plan.quantization
    assert plan.quantization.calibration
    path = Path(plan.quantization.calibration.dataset.path)
    assert any(Path(mount["mountPath"]) in (path, *path.parents) for mount in trainer["volumeMounts"])
    assert Wanted("spec.quantization.calibration.dataset", "Secret", "hub") in list(wanted(resource, "pvc://store"))


def test_without_a_gang_scheduler_there_is_no_group() -> None:
    spec = FineTuneJob.model_validate(train()).spec
    assert pod_group(OWNER, 1, 4, spec, Settings()) is None
    assert "schedulerName" not in built(Settings())["spec"]["template"]["spec"]


def test_torchrun_leaves_its_workers_the_pods_grace_to_write_a_checkpoint() -> None:
    pod = built(Settings(), nodes=2)["spec"]["template"]["spec"]
    env = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
    assert 60 < int(env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]


def test_the_claim_of_the_checkpoints_is_mounted_to_be_written() -> None:
    job = built(Settings(), checkpoint={"storage": "pvc://scratch/ckpt"})
    mounts = {m["name"]: m for m in job["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]}
    assert not mounts["claim-scratch"].get("readOnly")


@pytest.mark.parametrize(
    ("modes", "pods", "writable", "refused"),
    [
        (["ReadWriteOnce"], 1, True, False),
        (["ReadWriteOnce"], 2, True, True),
        (["ReadWriteOnce"], 2, False, True),
        (["ReadOnlyMany"], 2, False, False),
        (["ReadOnlyMany"], 1, True, True),
        (["ReadWriteOnce", "ReadWriteMany"], 2, True, False),
        (["ReadWriteOncePod"], 1, True, False),
    ],
)
def test_access_modes_must_fit_the_number_of_pods(modes: list[str], pods: int, writable: bool, refused: bool) -> None:
    wanted = Wanted("spec.output.uri", "PersistentVolumeClaim", "c", pods=pods, writable=writable)
    assert (refusal(wanted, modes) is not None) == refused


def test_prices_come_from_the_environment_as_json() -> None:
    assert load({"TUNESMITH_PRICES": '{"nvidia.com/gpu": 2.5}'}).prices == {"nvidia.com/gpu": 2.5}


def test_objects_with_names_that_look_alike_are_mounted_each_where_it_belongs() -> None:
    long = "a" * 70
    claims = ["rows.en", "rows-en", f"{long}1", f"{long}2"]
    uris = [f"pvc://{claim}/r.jsonl" for claim in claims] + ["configmap://c.d/r.jsonl", "configmap://c-d/r.jsonl"]
    hubs = [{"uri": f"hf://org/{n}@main", "secretRef": {"name": name}} for n, name in enumerate(("s.x", "s-x"))]
    pod = built(Settings(), datasets=[*({"uri": uri} for uri in uris), *hubs])["spec"]["template"]["spec"]
    volumes = {
        one["name"]: str([body.get(key) for body in one.values() if isinstance(body, dict) for key in body][:1][0])
        for one in pod["volumes"]
        if {"persistentVolumeClaim", "configMap", "secret"} & one.keys() and one["name"] != "plan"
    }
    assert len(volumes) == len([one for one in pod["volumes"] if one["name"] in volumes]), "no name twice"
    assert all(re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name) for name in volumes)
    containers = [*pod["containers"], *pod["initContainers"]]
    mounted = {
        (mount["mountPath"].split("/")[3], volumes[mount["name"]])
        for one in containers
        for mount in one["volumeMounts"]
        if mount["name"] in volumes
    }
    assert all(at == what for at, what in mounted), mounted
    assert {*claims, "c.d", "c-d", "s.x", "s-x"} <= {at for at, _ in mounted}


def test_no_adapters_service_has_the_name_of_the_engines() -> None:
    owner = Owner("ModelDeployment", "ns", "x", "uid")
    names = [service_name(owner, one) for one in ("sql", "engines", "Engines", "engines-", "e" * 63)]
    assert names[0] == "x-sql"
    assert len({*names, engines_name(owner), owner.name}) == len(names) + 2
