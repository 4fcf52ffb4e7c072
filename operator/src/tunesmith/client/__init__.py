"""The Python client: `from tunesmith import Client, FineTuneJob`."""

from tunesmith.client.aio import AsyncClient
from tunesmith.client.curves import Curve
from tunesmith.client.errors import (
    Conflict,
    Forbidden,
    Invalid,
    JobFailed,
    NoCluster,
    NotFound,
    NotInstalled,
    NotServed,
    Refused,
    TunesmithError,
    Unreadable,
    WaitTimeout,
)
from tunesmith.client.logs import LogEntry
from tunesmith.client.resources import FineTuneJob, InferenceJob, MergeJob, ModelDeployment
from tunesmith.client.sync import Client

__all__ = [
    "AsyncClient",
    "Client",
    "Conflict",
    "Curve",
    "FineTuneJob",
    "Forbidden",
    "InferenceJob",
    "Invalid",
    "JobFailed",
    "LogEntry",
    "MergeJob",
    "ModelDeployment",
    "NoCluster",
    "NotFound",
    "NotInstalled",
    "NotServed",
    "Refused",
    "TunesmithError",
    "Unreadable",
    "WaitTimeout",
]
