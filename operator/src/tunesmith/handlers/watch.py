"""Watches: whatever happens to a resource, its children or what it refers to puts its key on the queue.

Nothing is decided here, and kopf keeps no state in the resources: a handler that runs twice, or not at all while
the operator is down, changes nothing, since every resource is looked at again when the watch begins anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import kopf

from tunesmith.api.base import GROUP, VERSION
from tunesmith.api.modeldeployment import ModelDeployment
from tunesmith.children.meta import KIND_LABEL, NAME_LABEL
from tunesmith.decide.references import sources
from tunesmith.observe import MODELS
from tunesmith.reconcile import Key
from tunesmith.settings import Settings
from tunesmith.workqueue import WorkQueue

CHILDREN = (("batch", "v1", "jobs"), ("apps", "v1", "deployments"), ("", "v1", "pods"))


def registry(queue: WorkQueue[Key]) -> kopf.OperatorRegistry:
    """Handlers that feed `queue`."""
    handlers = kopf.OperatorRegistry()
    # (namespace, kind, name) of what is referred to -> keys of those that refer to it.
    referrers: dict[tuple[str, str, str], set[Key]] = {}
    # Keys of those that select jobs by label -> the labels.
    selecting: dict[Key, dict[str, str]] = {}

    async def resource_changed(body: Mapping[str, Any], event: Mapping[str, Any], **rest: Any) -> None:
        key = Key(body["kind"], body["metadata"]["namespace"], body["metadata"]["name"])
        if event["type"] == "DELETED":
            queue.forget(key)
            for referring in referrers.values():
                referring.discard(key)
            selecting.pop(key, None)
        else:
            queue.add(key)
            resource = MODELS[key.kind].model_validate(dict(body))
            for _, source, _ in sources(resource):
                if source.reference:
                    referrers.setdefault((key.namespace, *source.reference), set()).add(key)
            if isinstance(resource, ModelDeployment) and resource.spec.adapter_selector:
                selecting[key] = resource.spec.adapter_selector.match_labels
        for referrer in referrers.get((key.namespace, key.kind, key.name), ()):
            queue.add(referrer)
        labels = body["metadata"].get("labels") or {}
        for selector, wanted in selecting.items():
            if key.kind == "FineTuneJob" and key.namespace == selector.namespace and wanted.items() <= labels.items():
                queue.add(selector)

    async def child_changed(labels: Mapping[str, str], namespace: str | None, **rest: Any) -> None:
        if labels[KIND_LABEL] in MODELS and namespace:
            queue.add(Key(labels[KIND_LABEL], namespace, labels[NAME_LABEL]))

    @kopf.on.login(registry=handlers)
    async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    for model in MODELS.values():
        plural = model.__name__.lower() + "s"
        kopf.on.event(GROUP, VERSION, plural, registry=handlers)(resource_changed)
    for group, version, plural in CHILDREN:
        kopf.on.event(
            group,
            version,
            plural,
            registry=handlers,
            labels={KIND_LABEL: kopf.PRESENT, NAME_LABEL: kopf.PRESENT},
        )(child_changed)
    return handlers


def settings() -> kopf.OperatorSettings:
    """Kopf as informer only: it writes nothing."""
    result = kopf.OperatorSettings()
    result.posting.enabled = False
    result.peering.standalone = True
    result.scanning.disabled = True  # no list of all CRDs and namespaces: least privilege
    result.watching.server_timeout = 600
    result.watching.client_timeout = 660
    result.watching.connect_timeout = 10
    result.networking.request_timeout = 30
    for _, _, plural in CHILDREN:
        result.watching.label_selectors[plural] = KIND_LABEL
    return result


async def run(queue: WorkQueue[Key], own: Settings) -> None:
    """Watch for ever."""
    await kopf.operator(
        registry=registry(queue),
        settings=settings(),
        standalone=True,
        clusterwide=not own.namespaces,
        namespaces=own.namespaces,
    )
