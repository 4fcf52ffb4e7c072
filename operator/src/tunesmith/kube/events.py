"""Kubernetes Events about custom resources, for `kubectl describe`."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

from tunesmith.kube.client import Client, Object


async def post(client: Client, resource: Object, type_: str, reason: str, message: str) -> None:
    """Post an event once: its name says what it says, so that saying it again changes nothing."""
    meta = resource["metadata"]
    key = hashlib.sha256("\n".join([meta["uid"], reason, message]).encode()).hexdigest()[:12]
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    await client.create(
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"namespace": meta["namespace"], "name": f"{meta['name']}.{key}"},
            "involvedObject": {
                "apiVersion": resource["apiVersion"],
                "kind": resource["kind"],
                "namespace": meta["namespace"],
                "name": meta["name"],
                "uid": meta["uid"],
            },
            "type": type_,
            "reason": reason,
            "message": message[:1024],
            "source": {"component": "tunesmith"},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
    )
