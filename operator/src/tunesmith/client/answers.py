"""What the API server's refusals mean for people."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import aiohttp
from kubernetes.aio.config import ConfigException

from tunesmith.client.errors import Conflict, Forbidden, Invalid, NoCluster, NotFound, NotInstalled, Refused
from tunesmith.kube.connection import ApiError
from tunesmith.schema.crd import KINDS

PLURALS = {kind.name: kind.plural for kind in KINDS}
INSTALL = "install the chart (helm/tunesmith), or ask whoever runs the cluster; `tunesmith doctor` looks at it"
KUBECONFIG = "set KUBECONFIG or --kubeconfig, and see that `kubectl get namespaces` works"


def kind_of(word: str) -> str:
    """The kind that is meant by FineTuneJob, finetunejobs or ftj. Raises Invalid."""
    for kind in KINDS:
        if word.lower() in {kind.name.lower(), kind.plural, kind.short}:
            return kind.name
    short = ", ".join(f"{kind.name} ({kind.short})" for kind in KINDS)
    raise Invalid(f"{word} is no kind of tunesmith", f"there are {short}")


def usefulness(hint: str) -> int:
    """Order of hints: another namespace, a slip of the pen, anything else."""
    return next((n for n, word in enumerate(("there is one in", "did you mean", "there are")) if word in hint), 9)


def nearest(name: str, names: Sequence[str], kind: str, namespace: str) -> str:
    """What may have been meant."""
    close = difflib.get_close_matches(name, names, 1, 0.6)
    if close:
        return f"did you mean {close[0]}?"
    if not names:
        return f"namespace {namespace} has no {kind}; -n chooses another"
    return f"there are {', '.join(names[:10])}{', …' if len(names) > 10 else ''}"


@contextmanager
def understood(kind: str = "", name: str = "", namespace: str = "") -> Iterator[None]:
    """Turn what the block raises into errors for people."""
    try:
        yield
    except ApiError as error:
        raise _refused(error, kind, name, namespace) from error
    except ConfigException as error:
        raise NoCluster(f"no cluster to work with: {str(error).rstrip('.')}", KUBECONFIG) from error
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
        what = str(error) or type(error).__name__
        raise NoCluster(f"the API server does not answer: {what}", KUBECONFIG) from error


def _refused(error: ApiError, kind: str, name: str, namespace: str) -> Exception:
    message, details = error.message, error.details
    what = f"{kind} {name}".strip()
    match error.status:
        case 401:
            return Forbidden("the API server does not know you: the credentials are wrong or too old", KUBECONFIG)
        case 403:
            return Forbidden(message, "ask for the role `edit` (to read: `view`) in that namespace")
        case 404 if details.get("kind") == "namespaces":
            return NotFound(f"namespace {namespace} does not exist", f"kubectl create namespace {namespace}")
        case 404 if details.get("name"):
            return NotFound(f"there is no {what} in namespace {namespace}")
        case 404 if kind in PLURALS:
            return NotInstalled("this cluster does not know tunesmith's kinds", INSTALL)
        case 404:
            return NotFound(message)
        case 409:
            # Only server-side apply has causes: the fields that others own.
            return Conflict(f"{what}: {message}", "--force takes the fields over" if details.get("causes") else "")
        case 400 | 422:
            return Invalid.fields(what, list(map(_cause, details.get("causes", ()))) or [message])
        case _:
            return Refused(f"{what}: {message} (HTTP {error.status})")


def _cause(one: Mapping[str, str]) -> str:
    """A problem with its field. Rules of the whole resource have none, and name it in their message."""
    field, message = one.get("field", ""), one.get("message", "")
    return message.removeprefix("Invalid value: ") if field in {"", "<nil>"} else f"{field}: {message}"
