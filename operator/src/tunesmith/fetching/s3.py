"""Objects in S3 and what speaks its protocol (gs:// too), signed with AWS Signature Version 4.

Two calls are all that is needed, ListObjectsV2 and GetObject. A client library for them would add 30 MB.
https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

from __future__ import annotations

import hashlib
import hmac
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

from tunesmith.fetching import NOT_FOUND, PERMANENT, TRANSIENT, Credentials, FetchError, Progress
from tunesmith.fetching.web import BROKEN, TIMEOUT, download, opener, refusal

EMPTY = hashlib.sha256(b"").hexdigest()
# Lies below a prefix while an artefact is pushed to it: what is there is not whole.
MARKER = ".tunesmith-push"


@dataclass(frozen=True)
class Object:
    """One object of a bucket."""

    key: str
    size: int
    etag: str


@dataclass(frozen=True)
class Bucket:
    """A bucket, and who we are there. Without keys, requests are anonymous."""

    name: str
    endpoint: str
    region: str
    key_id: str = ""
    key: str = ""

    def request(
        self,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        method: str = "GET",
        body: bytes | None = None,
    ) -> urllib.request.Request:
        """A signed request. The path is that of an object, or empty for the bucket."""
        where = f"/{quote(self.name)}/{quote(path, safe='/-_.~')}"
        arguments = "&".join(f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in sorted(query.items()))
        all_headers = {"x-amz-content-sha256": hashlib.sha256(body or b"").hexdigest(), **headers}
        if self.key_id:
            host = urlsplit(self.endpoint).netloc
            all_headers = sign(self, method, where, arguments, {"host": host, **all_headers}, datetime.now(UTC))
        url = f"{self.endpoint}{where}" + (f"?{arguments}" if query else "")
        return urllib.request.Request(url, data=body, headers=all_headers, method=method)

    def objects(self, prefix: str) -> Iterator[Object]:
        """All objects whose key begins with `prefix`. Raises FetchError."""
        query = {"list-type": "2", "prefix": prefix}
        while True:
            root = self._list(query)
            space = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
            for item in root.iter(f"{space}Contents"):
                texts = [item.findtext(f"{space}{name}") or "" for name in ("Key", "Size", "ETag")]
                yield Object(texts[0], int(texts[1] or 0), texts[2])
            token = root.findtext(f"{space}NextContinuationToken")
            if not token:
                return
            query["continuation-token"] = token

    def read(self, item: Object, start: int, length: int) -> bytes:
        """A part of an object. Raises FetchError."""
        headers = {"if-match": item.etag, "range": f"bytes={start}-{start + length - 1}"}
        with self._told(), opener().open(self.request(item.key, {}, headers), timeout=TIMEOUT) as response:
            data: bytes = response.read(length)
            return data

    def _list(self, query: Mapping[str, str]) -> ElementTree.Element:
        try:
            with self._told(), opener().open(self.request("", query, {}), timeout=TIMEOUT) as response:
                return ElementTree.fromstring(response.read())
        except ElementTree.ParseError as error:
            raise FetchError(f"{self.endpoint} does not answer as S3 does ({error}): check endpoint") from None

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What goes wrong in a request, as a FetchError."""
        try:
            yield
        except urllib.error.HTTPError as error:
            with error:
                if error.code >= 500:
                    raise FetchError(f"{self.endpoint} answers {error.code}: try later", TRANSIENT) from None
                raise refusal(error) from None
        except BROKEN as error:
            reason = getattr(error, "reason", error)
            raise FetchError(f"{self.endpoint}: {reason}: is it right and reachable?", TRANSIENT) from None


def sign(
    bucket: Bucket, method: str, path: str, query: str, headers: Mapping[str, str], now: datetime
) -> dict[str, str]:
    """The headers with a signature. `host` and the digest of the body must be among them."""
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    signed = {name.lower(): value for name, value in {**headers, "x-amz-date": stamp}.items()}
    names = ";".join(sorted(signed))
    lines = "".join(f"{name}:{signed[name]}\n" for name in sorted(signed))
    canonical = "\n".join((method, path, query, lines, names, signed["x-amz-content-sha256"]))
    scope = f"{stamp[:8]}/{bucket.region}/s3/aws4_request"
    text = "\n".join(("AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    key = f"AWS4{bucket.key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    credential = f"AWS4-HMAC-SHA256 Credential={bucket.key_id}/{scope},SignedHeaders={names},Signature={signature}"
    return {**signed, "Authorization": credential}


def bucket_of(uri: str, keys: Credentials) -> tuple[Bucket, str]:
    """The bucket of an address, and the key or prefix in it. Raises FetchError."""
    parts = urlsplit(uri)
    region = keys.get("region", "us-east-1")
    # Google Cloud Storage speaks the same protocol, with HMAC keys: https://cloud.google.com/storage/docs/interoperability
    usual = "https://storage.googleapis.com" if parts.scheme == "gs" else f"https://s3.{region}.amazonaws.com"
    endpoint = keys.get("endpoint", usual).rstrip("/")
    if urlsplit(endpoint).scheme not in ("http", "https"):
        raise FetchError(f"the Secret's endpoint {endpoint!r} must begin with http:// or https://")
    missing = {"accessKeyId", "secretAccessKey"} - keys.keys()
    if len(missing) == 1:
        raise FetchError(f"the Secret has no key {missing.pop()}: add it")
    bucket = Bucket(parts.netloc, endpoint, region, keys.get("accessKeyId", ""), keys.get("secretAccessKey", ""))
    return bucket, parts.path.lstrip("/")


def find(uri: str, keys: Credentials) -> tuple[Bucket, dict[str, Object]]:
    """The objects of an address by their names in its folder: one object, or all below a prefix."""
    bucket, prefix = bucket_of(uri, keys)
    found = [o for o in bucket.objects(prefix) if not o.key.endswith("/")]
    below = prefix.rstrip("/") + "/"
    single = [o for o in found if o.key == prefix]
    wanted = {o.key.rsplit("/", 1)[-1]: o for o in single} or {
        o.key.removeprefix(below): o for o in found if o.key.startswith(below)
    }
    if not wanted:
        raise FetchError(f"no object {prefix} and none below it in {bucket.endpoint}: check the address", NOT_FOUND)
    if MARKER in wanted:
        raise FetchError("an artefact is being pushed to it, or was and is not whole: push it again", TRANSIENT)
    return bucket, wanted


def fetch(uri: str, folder: Path, keys: Credentials, progress: Progress) -> None:
    """Fetch one object, or all objects below a prefix."""
    bucket, wanted = find(uri, keys)
    for name, item in wanted.items():
        if ".." in PurePosixPath(name).parts or name.startswith("/"):
            raise FetchError(f"the object {item.key} would be written outside of the folder", PERMANENT)
        progress(f"{name}: {item.size} bytes")
        _one(bucket, item, folder / name, progress)


def _one(bucket: Bucket, item: Object, target: Path, progress: Progress) -> None:
    if target.exists() and target.stat().st_size == item.size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    director = opener()

    def get(offset: int) -> Any:
        # Never the head of one version with the tail of another.
        headers = {"if-match": item.etag, **({"range": f"bytes={offset}-"} if offset else {})}
        return director.open(bucket.request(item.key, {}, headers), timeout=TIMEOUT)

    download(get, target, progress, item.size)
