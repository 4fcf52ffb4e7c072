"""Watches: whatever happens to a resource, its children or what it refers to puts its key on the queue.

Nothing is decided here, and kopf keeps no state in the resources: a handler that runs twice, or not at all while
the operator is down, changes nothing, since every resource is looked at again when the watch begins anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import kopf

from tunesmith.api.base import GROUP, VERSION
from tunesmith.api.kinds import MODELS, plural
from tunesmith.children.meta import KIND_LABEL, NAME_LABEL
from tunesmith.handlers.interest import Interest
from tunesmith.reconcile import Key
from tunesmith.settings import Settings
from tunesmith.workqueue import WorkQueue

CHILDREN = (("batch", "v1", "jobs"), ("apps", "v1", "deployments"), ("", "v1", "pods"))


def registry(queue: WorkQueue[Key]) -> kopf.OperatorRegistry:
    """Handlers that feed `queue`."""
    handlers = kopf.OperatorRegistry()
    interest = Interest()

    async def resource_changed(body: Mapping[str, Any], event: Mapping[str, Any], **rest: Any) -> None:
        key = Key(body["kind"], body["metadata"]["namespace"], body["metadata"]["name"])
        if event["type"] == "DELETED":
            queue.forget(key)
            interest.forget(key)
        else:
            queue.add(key)
            interest.keep(key, MODELS[key.kind].model_validate(dict(body)))
        for other in interest.of(key, body["metadata"].get("labels") or {}):
            queue.add(other)

    async def child_changed(labels: Mapping[str, str], namespace: str | None, **rest: Any) -> None:
        if labels[KIND_LABEL] in MODELS and namespace:
            queue.add(Key(labels[KIND_LABEL], namespace, labels[NAME_LABEL]))

    @kopf.on.login(registry=handlers)
    async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    for kind in MODELS:
        kopf.on.event(GROUP, VERSION, plural(kind), registry=handlers)(resource_changed)
    for group, version, resources in CHILDREN:
        kopf.on.event(
            group,
            version,
            resources,
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
    for _, _, resources in CHILDREN:
        result.watching.label_selectors[resources] = KIND_LABEL
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
