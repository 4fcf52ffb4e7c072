"""To a bucket. Nothing there is done at once, so a marker lies beside the objects until all of them are there: our
readers take nothing from a prefix with one.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import urllib.error
from collections.abc import Iterator, Mapping
from email.message import Message
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from tunesmith import artifacts
from tunesmith.fetching import PERMANENT, TRANSIENT, Credentials, FetchError, Progress
from tunesmith.fetching.s3 import MARKER, Bucket, Object, bucket_of
from tunesmith.fetching.web import send
from tunesmith.pushing.content import Content, File

PART = 64 * 1024 * 1024
"""Bytes of a request. An object has at most 10,000 parts: 625 GiB."""


def push(uri: str, content: Content, keys: Credentials, progress: Progress) -> None:
    """Make what lies below a prefix the artefact. Raises FetchError and HTTPError."""
    bucket, prefix = bucket_of(uri, keys)
    below = prefix.rstrip("/") + "/"
    there = {one.key.removeprefix(below): one for one in bucket.objects(below)}
    if MARKER not in there and same(bucket, there, content):
        progress(f"{uri} has it already")
        return
    if there and not {MARKER, artifacts.MANIFEST} & there.keys():
        raise FetchError(
            f"{next(iter(there))} lies there, and no artefact of tunesmith's: name a prefix with nothing below it",
            PERMANENT,
        )
    put(bucket, below + MARKER, content.digest.encode())
    for name, file in content.files.items():
        if name in there and there[name].etag.strip('"') == etag(file):
            continue
        progress(f"{name}: {file.size} bytes")
        upload(bucket, below + name, file)
    for name in there.keys() - content.files.keys() - {MARKER}:
        call(bucket, "DELETE", below + name)
    call(bucket, "DELETE", below + MARKER)


def same(bucket: Bucket, there: Mapping[str, Object], content: Content) -> bool:
    """Whether the artefact is there, whole."""
    sizes = {name: file.size for name, file in content.files.items() if name not in artifacts.NOT_CONTENT}
    found = {name: one.size for name, one in there.items() if name not in artifacts.NOT_CONTENT}
    manifest = there.get(artifacts.MANIFEST)
    if manifest is None or sizes != found:
        return False
    return content.is_that_of(bucket.read(manifest, 0, manifest.size))


def parts(file: File) -> Iterator[bytes]:
    """What is sent of a file at a time."""
    with file.path.open("rb") as source:
        for _ in range(max(1, math.ceil(file.size / PART))):
            yield source.read(PART)


def etag(file: File) -> str:
    """As S3 makes it of an object that was sent like this, unless a key of KMS encrypts it: then it is sent again."""
    sums = [hashlib.md5(part, usedforsecurity=False) for part in parts(file)]
    if len(sums) == 1:
        return sums[0].hexdigest()
    return hashlib.md5(b"".join(one.digest() for one in sums), usedforsecurity=False).hexdigest() + f"-{len(sums)}"


def upload(bucket: Bucket, key: str, file: File) -> None:
    """Write an object: at once, or in parts that appear when all are there."""
    if file.size <= PART:
        put(bucket, key, next(parts(file)))
        return
    begun = answer(call(bucket, "POST", key, {"uploads": ""}, b"")[1], "InitiateMultipartUploadResult")
    upload_id = begun.findtext("{*}UploadId") or ""
    try:
        tags = []
        for number, part in enumerate(parts(file), 1):
            headers, _ = call(bucket, "PUT", key, {"partNumber": str(number), "uploadId": upload_id}, part)
            tags.append(headers["ETag"])
        listed = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(tag)}</ETag></Part>"
            for number, tag in enumerate(tags, 1)
        )
        body = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
        # An error of the last step may come with status 200.
        answer(call(bucket, "POST", key, {"uploadId": upload_id}, body)[1], "CompleteMultipartUploadResult")
    except BaseException:
        with contextlib.suppress(FetchError, urllib.error.HTTPError):
            call(bucket, "DELETE", key, {"uploadId": upload_id})
        raise


def put(bucket: Bucket, key: str, body: bytes) -> None:
    """Write an object."""
    call(bucket, "PUT", key, body=body)


def call(
    bucket: Bucket, method: str, key: str, query: Mapping[str, str] | None = None, body: bytes | None = None
) -> tuple[Message, bytes]:
    """One request about an object."""
    headers = {} if body is None else {"content-type": "application/octet-stream"}
    return send(lambda: bucket.request(key, query or {}, headers, method, body))


def answer(body: bytes, wanted: str) -> ElementTree.Element:
    """The XML of an answer. Raises FetchError."""
    root = ElementTree.fromstring(body)
    if root.tag.rpartition("}")[2] != wanted:
        raise FetchError(f"S3 answers {root.findtext('{*}Code') or root.tag}: {root.findtext('{*}Message')}", TRANSIENT)
    return root
