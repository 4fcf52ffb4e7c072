"""Where a job puts what it makes, where that is pushed, and what is said of it there."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from tunesmith.api.base import ClaimUri, Model, SecretRef, Time, list_map, rule, rules

MOST_DESTINATIONS = 8
DESTINATION_PATTERN = (
    r"^(hf://[\w.-]+/[\w.-]+(@[\w./-]+)?"
    r"|ms://[\w.-]+/[\w.-]+"
    r"|(s3|gs)://[a-z0-9][a-z0-9._-]+/[^\x00-\x1f]+"
    r"|oci://[\w.-]+(:\d+)?/[\w./-]+:[\w.-]+)$"
)


class Destination(Model):
    """Somewhere that the artefact is pushed to, and where it can be read from."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.private) || self.uri.matches('^(hf|ms)://')",
                "private is for repositories of hf:// and ms:// only",
            )
        )
    )
    uri: Annotated[str, Field(min_length=6, max_length=512, pattern=DESTINATION_PATTERN)]
    """`hf://org/name` or `hf://org/name@branch`, `ms://org/name` (ModelScope), `s3://bucket/prefix`, `gs://bucket/prefix`
    or `oci://registry/repository:tag`. Of an InferenceJob hf:// and ms:// name repositories of datasets. Afterwards it
    holds the artefact and nothing else."""
    secret_ref: SecretRef | None = None
    """Credentials of who may write there: the keys are those for reading. Mounted into the pushing container only."""
    private: bool | None = None
    """Whether a repository that is made for it is private. Default: true."""


class Output(Model):
    """Where artefacts are written."""

    uri: ClaimUri | None = None
    """The store, `pvc://claim/path`. Default: the operator's store (chart value `defaultStore`), which is
    `pvc://tunesmith-store`. Artefacts are written to `<store>/<kind>/<sha256>/` and never changed."""
    license: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9.-]*$")] | None = None
    """The licence that the artefact's card states, by its name on the Hub, for example `apache-2.0`
    (https://huggingface.co/docs/hub/repositories-licenses). Default: the card states none."""
    push: Annotated[list[Destination], Field(max_length=MOST_DESTINATIONS, json_schema_extra=list_map("uri"))] = []
    """Where the artefact is pushed to when the job has succeeded. Nothing waits for it: the artefact is in the store
    already. Can be changed at any time: what is added is pushed then."""


class Pushed(Model):
    """An artefact that was pushed."""

    uri: Annotated[str, Field(max_length=512)]
    """Where it is, as spec.output.push says it."""
    digest: Annotated[str, Field(max_length=80)]
    """`sha256:` of its content."""
    revision: Annotated[str, Field(max_length=128)] | None = None
    """The commit of a hub, or the digest of a registry's manifest: `hf://org/name@<revision>` and
    `oci://registry/repository@<revision>` are this very artefact for ever."""
    time: Time
    """When all of it was there."""
