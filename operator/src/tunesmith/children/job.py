"""The Jobs of the kinds of job, and the headless Service by which the pods of one find each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tunesmith.api.finetunejob import FineTuneJobSpec
from tunesmith.api.inferencejob import InferenceJobSpec
from tunesmith.api.job import JobSpec
from tunesmith.api.mergejob import MergeJobSpec
from tunesmith.children.gang import in_gang
from tunesmith.children.meta import ATTEMPT_LABEL, Object, Owner, job_name
from tunesmith.children.pods import (
    ENVIRONMENT,
    SCRATCH,
    Input,
    container,
    mounts,
    pod_spec,
    pull_secrets,
    secret_volume,
    secret_volumes,
)
from tunesmith.children.template import customised
from tunesmith.settings import Settings
from tunesmith.training.location import SECRETS
from tunesmith.training.plan import AnyPlan, InferencePlan, MergePlan, Place, TrainPlan
from tunesmith.training.report import PLAN_FILE, PLAN_FOLDER, PORT

MASTER_PORT = 29500
INDEX = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
# Time to write a checkpoint after SIGTERM.
GRACE_SECONDS = 120
# https://kueue.sigs.k8s.io/docs/reference/labels-and-annotations/
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
QUEUE_PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"


def _secret(source: object) -> str | None:
    ref = getattr(source, "secret_ref", None)
    return ref.name if ref else None


def train_job(
    owner: Owner,
    attempt: int,
    spec: FineTuneJobSpec,
    plan: TrainPlan,
    settings: Settings,
    deadline: int | None,
) -> Object:
    """The Indexed Job of one attempt: one pod per node, torchrun in each where there are several processes.
    `deadline`: seconds that are left to it.
    """
    alone = plan.world_size == 1
    launcher = ["python"] if alone else ["python", "-m", "torch.distributed.run"]
    inputs = [
        Input(plan.model.uri, _secret(spec.model)),
        *datasets(plan, spec),
        *(Input(plan.method.models[field].uri, _secret(source)) for field, source in spec.method.sources()),
        *(Input(uri) for uri in plan.method.files()),
    ]
    return _job(
        owner,
        attempt,
        command=[*launcher, "-m", "tunesmith_trainer", "train"],
        env=[*threads(plan), *([] if alone else rendezvous(owner, attempt, plan))],
        inputs=[*inputs, Input(plan.checkpoint.uri, writable=True)],
        secrets=[one.secret_ref.name for one in spec.training.report_to if one.secret_ref],
        plan=plan,
        spec=spec,
        resources=spec.resources.body(),
        settings=settings,
        deadline=deadline,
    )


def merge_job(
    owner: Owner,
    attempt: int,
    spec: MergeJobSpec,
    plan: MergePlan,
    settings: Settings,
    deadline: int | None,
) -> Object:
    """The Job that merges: one pod."""
    sources: list[tuple[Place, object]] = [
        (plan.model, spec.model),
        *zip(plan.adapters, spec.adapters, strict=True),
    ]
    return _job(
        owner,
        attempt,
        command=["python", "-m", "tunesmith_trainer", "merge"],
        env=[],
        inputs=[*(Input(place.uri, _secret(source)) for place, source in sources), *datasets(plan, spec)],
        plan=plan,
        spec=spec,
        resources=spec.resources.body(),
        settings=settings,
        deadline=deadline,
    )


def datasets(plan: AnyPlan, spec: FineTuneJobSpec | MergeJobSpec | InferenceJobSpec) -> Iterator[Input]:
    """The datasets that are read."""
    for place, (_, source) in zip(plan.all_datasets, spec.all_datasets(), strict=True):
        yield Input(place.uri, _secret(source), kind="dataset")


def inference_job(
    owner: Owner,
    attempt: int,
    spec: InferenceJobSpec,
    plan: InferencePlan,
    settings: Settings,
    deadline: int | None,
) -> Object:
    """The Job that asks a model: one pod."""
    models: list[tuple[Place, object]] = [(plan.model, spec.model)]
    if plan.adapter:
        models.append((plan.adapter, spec.adapter))
    return _job(
        owner,
        attempt,
        command=["python", "-m", "tunesmith_trainer", "infer", "--plan", PLAN_FILE],
        env=threads(plan),
        inputs=[
            *(Input(place.uri, _secret(source)) for place, source in models),
            *datasets(plan, spec),
        ],
        plan=plan,
        spec=spec,
        resources=spec.resources.body(),
        settings=settings,
        deadline=deadline,
    )


def threads(plan: AnyPlan) -> list[Object]:
    """As many threads as the pod may use cores, where one process has them all; torchrun shares them otherwise."""
    if plan.world_size > plan.pods:
        return []
    cores = {"resourceFieldRef": {"containerName": "trainer", "resource": "limits.cpu"}}
    return [{"name": "OMP_NUM_THREADS", "valueFrom": cores}]


def rendezvous(owner: Owner, attempt: int, plan: TrainPlan) -> list[Object]:
    """The environment of torchrun (PET_*) and, under the same names as PyTorchJob, of programs without it."""
    job = job_name(owner, attempt)
    values = {
        "MASTER_ADDR": f"{job}-0.{job}",
        "MASTER_PORT": str(MASTER_PORT),
        "WORLD_SIZE": str(plan.nodes * plan.processes_per_node),
        "PET_MASTER_ADDR": f"{job}-0.{job}",
        "PET_MASTER_PORT": str(MASTER_PORT),
        "PET_NNODES": str(plan.nodes),
        "PET_NPROC_PER_NODE": str(plan.processes_per_node),
        # torchrun kills its workers so long after SIGTERM; by its default of 30 s, in the middle of a checkpoint.
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(GRACE_SECONDS - 10),
    }
    return [
        *({"name": name, "value": value} for name, value in values.items()),
        {"name": "RANK", "valueFrom": INDEX},
        {"name": "PET_NODE_RANK", "valueFrom": INDEX},
    ]


def _job(
    owner: Owner,
    attempt: int,
    *,
    command: list[str],
    env: list[Object],
    inputs: list[Input],
    secrets: Iterable[str] = (),
    plan: AnyPlan,
    spec: JobSpec,
    resources: Object,
    settings: Settings,
    deadline: int | None,
) -> Object:
    name = job_name(owner, attempt)
    labels = {ATTEMPT_LABEL: str(attempt)}
    queue = {}
    if spec.queue_name:
        queue[QUEUE_LABEL] = spec.queue_name
        if spec.priority:
            queue[QUEUE_PRIORITY_LABEL] = spec.priority
    wanted = mounts([*inputs, Input(plan.output.uri, writable=True)], settings)
    own = dict.fromkeys(secrets)
    volumes = {body["name"]: body for body in [*wanted.volumes, *secret_volumes(own)]}
    trainer = container(
        "trainer",
        settings.trainer_image,
        settings,
        command=command,
        env=[*ENVIRONMENT, *env],
        ports=[{"name": "progress", "containerPort": PORT}],
        resources=resources,
        volumeMounts=[
            *SCRATCH,
            {"name": "plan", "mountPath": PLAN_FOLDER, "readOnly": True},
            *wanted.mounts,
            *({"name": secret_volume(name), "mountPath": f"{SECRETS}/{name}", "readOnly": True} for name in own),
        ],
        terminationMessagePolicy="FallbackToLogsOnError",
    )
    template = {
        "metadata": {"labels": {**owner.labels, **labels}},
        "spec": pod_spec(
            [trainer],
            wanted.fetchers,
            [{"name": "plan", "configMap": {"name": name}}, *volumes.values()],
            settings,
            restartPolicy="Never",
            subdomain=name,
            **pull_secrets(settings, spec.pod_template.image_pull_secrets),
            terminationGracePeriodSeconds=GRACE_SECONDS,
        ),
    }
    job: Object = {
        "completionMode": "Indexed",
        "completions": plan.pods,
        "parallelism": plan.pods,
        # A group lives and dies as a whole: the first failed pod ends the attempt.
        "backoffLimit": 0,
        # Never two pods of one rank: a pod is replaced, after a suspension, when the one before has ended.
        "podReplacementPolicy": "Failed",
        "template": customised(in_gang(owner, attempt, template, settings), spec.pod_template),
    }
    if deadline is not None:
        job["activeDeadlineSeconds"] = deadline
    if queue:
        job["suspend"] = True  # from the first moment on: no pod may start before Kueue has seen the Job
    return {**owner.child("batch/v1", "Job", name, {**labels, **queue}), "spec": job}


def headless_service(owner: Owner, attempt: int) -> Object:
    """Gives the pods of one attempt their names. Addresses are published at once: rank 0 is looked for before
    it is ready.
    """
    return {
        **owner.child("v1", "Service", job_name(owner, attempt), {ATTEMPT_LABEL: str(attempt)}),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {**owner.labels, ATTEMPT_LABEL: str(attempt)},
            "ports": [{"name": "rendezvous", "port": MASTER_PORT}, {"name": "progress", "port": PORT}],
        },
    }
