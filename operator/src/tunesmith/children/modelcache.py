"""Where a ModelDeployment's model is in its pods: where its address says, on the cache's claim, or in an image."""

from __future__ import annotations

import hashlib
import re

from tunesmith.api.modeldeployment import ModelDeploymentSpec
from tunesmith.children.meta import Owner
from tunesmith.children.pods import Input
from tunesmith.training.location import CLAIMS, IMAGES, Location, locate

# What is fetched, and what groups of pods share, lies below these folders of the claim.
MODELS, ADAPTERS = ".tunesmith/models", ".tunesmith/adapters"
# Addresses that always name the same content: a commit, a digest.
PINNED = re.compile(r"^((hf|ms)://[^@]+@[0-9a-f]{40}|oci://.+@sha256:[0-9a-f]{64}|https://.+#sha256=[0-9a-f]{64})$")


def model_input(owner: Owner, spec: ModelDeploymentSpec, uri: str) -> Input:
    """The model at `uri` as an input of the engine's pods."""
    cache, place = spec.model_cache, locate(uri)
    secret = spec.model.secret_ref.name if spec.model.secret_ref else None
    if cache is None or not place.fetch:  # what is on a claim, or in the image, needs no other place
        return Input(uri, secret)
    name = hashlib.sha256(uri.encode()).hexdigest()[:16]
    if cache.type == "ImageVolume":
        return Input(uri, secret, at=Location(uri, f"{IMAGES}/{name}", image=True))
    assert cache.claim is not None
    # Deployments share what cannot change. A branch or a tag is what it was when this deployment first fetched it.
    folder = name if PINNED.fullmatch(uri) else f"{name}-{owner.uid[:8]}"
    path = f"{CLAIMS}/{cache.claim.name}/{MODELS}/{folder}"
    return Input(uri, secret, at=Location(uri, path, cache.claim.name, fetch=True), keep_days=cache.claim.keep_days)


def group_adapters(owner: Owner, spec: ModelDeploymentSpec, group: str) -> str:
    """The folder of the adapters that the pods of one group share: each of its workers reads them itself."""
    assert spec.model_cache is not None
    assert spec.model_cache.claim is not None
    return f"{CLAIMS}/{spec.model_cache.claim.name}/{ADAPTERS}/{owner.uid}/{group}"
