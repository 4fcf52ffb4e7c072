"""Files over HTTP: resumed where they broke off, checked by digest."""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tunesmith.fetching import NOT_FOUND, PERMANENT, TRANSIENT, Credentials, FetchError, Progress

CHUNK = 1024 * 1024
TIMEOUT = 60
ATTEMPTS = 5
EVERY = 5.0  # seconds between lines of progress

Open = Callable[[int], Any]
"""Opens the response that holds a file's bytes from an offset on."""
# What breaks off a transfer, and may go better the next time.
BROKEN = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError)


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only, and keeps credentials from other hosts."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """The next request."""
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if old.scheme == "https" and new.scheme != "https":
            raise FetchError(f"redirected to {new.scheme}://{new.netloc}, which is not https")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and new.netloc != old.netloc:
            request.remove_header("Authorization")
            request.remove_header("Cookie")
        return request


def opener() -> urllib.request.OpenerDirector:
    """What opens addresses. Proxies and certificates are taken from the environment, as usual."""
    return urllib.request.build_opener(Redirects)


def fetch(uri: str, folder: Path, keys: Credentials, progress: Progress) -> None:
    """Fetch `https://host/path#sha256=digest` into the folder, under the path's last name."""
    url, _, fragment = uri.partition("#")
    wanted = fragment.removeprefix("sha256=")
    if len(wanted) != 64:
        raise FetchError("an https address must end with #sha256=<digest>, so that it always means the same")
    headers = {"Authorization": keys["authorization"]} if "authorization" in keys else {}
    director = opener()

    def get(offset: int) -> Any:
        return director.open(ranged(url, headers, offset), timeout=TIMEOUT)

    name = unquote(urlsplit(url).path).rsplit("/", 1)[-1]
    target = folder / (name if name not in ("", ".", "..") else "file")
    download(get, target, progress)
    with target.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted:
        target.unlink()
        raise FetchError(f"the file has sha256 {found}: the address is wrong, or the file was changed")


def ranged(url: str, headers: Mapping[str, str], offset: int) -> urllib.request.Request:
    """A request for the bytes from `offset` on."""
    more = {"Range": f"bytes={offset}-"} if offset else {}
    return urllib.request.Request(url, headers={"User-Agent": "tunesmith", **headers, **more})


def download(get: Open, target: Path, progress: Progress, size: int | None = None) -> None:
    """Write a file whose name appears when it is whole. Raises FetchError."""
    part = target.with_name(f"{target.name}.part")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _append(get, part, progress, size)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416 and part.exists():  # more than there is: begin anew
                    part.unlink()
                elif error.code < 500 and error.code not in (408, 425, 429):
                    raise refusal(error) from None
                elif attempt == ATTEMPTS:
                    raise FetchError(f"the server answers {error.code} {error.reason}: try later", TRANSIENT) from None
        except BROKEN as error:
            if attempt == ATTEMPTS:
                reason = getattr(error, "reason", error)
                raise FetchError(f"{reason}: is the host right and reachable from the pod?", TRANSIENT) from None
        else:
            part.rename(target)
            return
        progress(f"{target.name}: broke off, attempt {attempt + 1} of {ATTEMPTS}")
        time.sleep(min(2 ** (attempt - 1), 10))
    raise FetchError("the server refuses every range: try again", TRANSIENT)


def _append(get: Open, part: Path, progress: Progress, size: int | None) -> None:
    offset = part.stat().st_size if part.exists() else 0
    if size is not None and offset == size:
        return
    with get(offset) as response:
        whole = response.status != 206
        length = response.headers.get("Content-Length")
        total = int(length) + (0 if whole else offset) if length else None
        done, said = (0 if whole else offset), time.monotonic()
        with part.open("wb" if whole else "ab") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                done += len(chunk)
                if time.monotonic() - said > EVERY:
                    said = time.monotonic()
                    progress(f"{part.stem}: {done >> 20} of {f'{total >> 20}' if total else '?'} MiB")
        if total is not None and done < total:
            raise ConnectionError(f"{total - done} of {total} bytes are missing")


def send(request: Callable[[], urllib.request.Request]) -> tuple[Message, bytes]:
    """Headers and body of the answer to a request that may be made twice; it is, where it breaks off or the server
    fails. `request` makes it anew. Raises FetchError, and HTTPError for a refusal.
    """
    for attempt in range(1, ATTEMPTS + 1):
        one = request()
        try:
            with opener().open(one, timeout=TIMEOUT) as response:
                return response.headers, response.read()
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 425, 429):
                raise
            with error:
                reason = f"answers {error.code} {error.reason}"
        except BROKEN as error:
            reason = f"{getattr(error, 'reason', error)}: is it right and reachable?"
        if attempt < ATTEMPTS:
            time.sleep(min(2 ** (attempt - 1), 10))
    raise FetchError(f"{one.host}: {reason}", TRANSIENT)


def refusal(error: urllib.error.HTTPError) -> FetchError:
    """What a 4xx means."""
    said = f"the server answers {error.code} {error.reason}"
    if error.code in (401, 403):
        return FetchError(f"{said}: check the Secret in secretRef", PERMANENT, error.code)
    if error.code in (404, 410):
        return FetchError(f"{said}: check the address", NOT_FOUND, error.code)
    return FetchError(said, PERMANENT, error.code)
