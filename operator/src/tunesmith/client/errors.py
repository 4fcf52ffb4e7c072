"""What can go wrong, each as one message for people.

TunesmithError
├── NoCluster          no kubeconfig, or the API server does not answer
├── NotInstalled       the cluster does not know tunesmith's kinds
├── NotFound           no such resource
├── Refused            the API server says no: Forbidden, Invalid, Conflict
│   ├── Forbidden
│   ├── Invalid        a field is wrong; also found before anything is sent
│   └── Conflict       somebody else owns the field, or it exists already
├── Unreadable         what is stored is of another version
├── JobFailed          the job ended with Succeeded=False
├── WaitTimeout        it has not ended in time
└── NotServed          a ModelDeployment does not answer
"""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.api.job import Failure


class TunesmithError(Exception):
    """`message` says what was found, `hint` what to do."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}. {hint}" if hint else message)
        self.message, self.hint = message, hint


class NoCluster(TunesmithError):
    """There is no kubeconfig, or the API server does not answer."""

    exit_code = 3


class NotInstalled(TunesmithError):
    """The cluster does not know tunesmith's kinds."""

    exit_code = 3


class NotFound(TunesmithError):
    """No such resource."""

    exit_code = 4


class Refused(TunesmithError):
    """The API server says no."""

    exit_code = 5


class Forbidden(Refused):
    """The user lacks a right."""


class Invalid(Refused):
    """A field is wrong."""

    exit_code = 2
    problems: Sequence[str] = ()
    """Each with its field: `spec.nodes: …`."""

    @classmethod
    def fields(cls, what: str, problems: Sequence[str]) -> Invalid:
        """One message about all of the problems."""
        listed = "".join(f"\n  {one}" for one in problems)
        error = cls(f"{what} cannot be submitted:{listed}")
        error.problems = problems
        return error


class Conflict(Refused):
    """It exists already, or another one owns what is to be changed."""


class Unreadable(TunesmithError):
    """What is stored is not as this version knows the kind."""

    @classmethod
    def fields(cls, what: str, problems: Sequence[str]) -> Unreadable:
        """One message about all of the problems."""
        listed = "; ".join(problems)
        return cls(
            f"{what} is not as this version knows it: {listed}", "use the version that its CRD is of, or mend it"
        )


class JobFailed(TunesmithError):
    """The job ended, and not well."""

    exit_code = 6

    def __init__(self, kind: str, name: str, reason: str, message: str, failure: Failure | None = None) -> None:
        super().__init__(f"{kind} {name} failed: {reason}: {message}", f"`tunesmith explain {reason}` says what to do")
        self.reason, self.failure = reason, failure


class WaitTimeout(TunesmithError):
    """It has not ended in the time that was given."""

    exit_code = 7


class NotServed(TunesmithError):
    """A ModelDeployment does not answer."""

    exit_code = 8
