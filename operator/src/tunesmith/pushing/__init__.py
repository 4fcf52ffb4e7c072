"""Pushes an artefact to where `tunesmith.fetching` can fetch it from: `hf://`, `ms://`, `s3://`, `gs://`, `oci://`.

What is there afterwards is the artefact and nothing else, with its manifest and its card. The same one is pushed once:
where it is there already, nothing is written. A push that was killed leaves nothing that could be taken for whole, and
the next one goes on from it.
"""

from __future__ import annotations

import urllib.error
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from tunesmith.api.output import Pushed
from tunesmith.fetching import NOT_FOUND, PERMANENT, TRANSIENT, FetchError, Progress, credentials
from tunesmith.pushing.content import Content

NEEDED = {
    "hf": "`token`: one that may write to the repository",
    "ms": "`token`: one that may write to the repository",
    "s3": "`accessKeyId` and `secretAccessKey` of a user that may list, read, write and delete below the prefix",
    "gs": "`accessKeyId` and `secretAccessKey` (HMAC) of a user that may list, read, write and delete below the prefix",
    "oci": "`username` and `password`, or `.dockerconfigjson`, of a user that may push",
}
"""By scheme, what the Secret must have."""
DENIED = (401, 403, 404)


class PushError(Exception):
    """What went wrong and what to do."""

    def __init__(self, message: str, code: int = PERMANENT) -> None:
        super().__init__(message)
        self.code = code


def push(
    uri: str, folder: Path, secret: Path | None = None, private: bool = True, progress: Progress = print
) -> Pushed:
    """Push the artefact in `folder` to `uri`. A repository that is made for it is `private`. Raises PushError."""
    scheme = urlsplit(uri).scheme
    revision: str | None = None
    try:
        content, keys = Content.of(folder), credentials(secret)
        match scheme:
            case "hf":
                from tunesmith.pushing import hub

                revision = hub.push(uri, content, keys, private, progress)
            case "ms":
                from tunesmith.pushing import modelscope

                revision = modelscope.push(uri, content, keys, private, progress)
            case "s3" | "gs":
                from tunesmith.pushing import s3

                s3.push(uri, content, keys, progress)
            case "oci":
                from tunesmith.pushing import oci

                revision = oci.push(uri, content, keys, progress)
            case _:
                raise FetchError(f"{scheme}:// cannot be pushed to: use hf://, ms://, s3://, gs:// or oci://")
    except FetchError as error:
        more = f". Pushing needs {NEEDED[scheme]}" if error.status in DENIED else ""
        raise PushError(f"{uri}: {error}{more}", TRANSIENT if error.code == TRANSIENT else PERMANENT) from None
    except urllib.error.HTTPError as error:
        with error:
            raise PushError(f"{uri}: {refusal(scheme, error)}") from None
    except OSError as error:
        raise PushError(f"{uri}: {error}: can the volume of {folder} be read?", TRANSIENT) from error
    progress(f"{folder} is at {uri}")
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Pushed(uri=uri, digest=content.digest, revision=revision, time=now)


def refusal(scheme: str, error: urllib.error.HTTPError) -> str:
    """What a server's refusal means."""
    said = f"{urlsplit(error.url).netloc} answers {error.code} {error.reason}"
    if error.code in DENIED:
        return f"{said}: the Secret of secretRef needs {NEEDED[scheme]}"
    return f"{said}: {error.read(500).decode(errors='replace')}"


__all__ = ["NEEDED", "NOT_FOUND", "PERMANENT", "TRANSIENT", "PushError", "push"]
