"""A real Kubernetes without Docker, for tunesmith's quickstart and tests."""

from tunesmith_cluster.cluster import Cluster, ProcessStatus, Status
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.paths import Paths

__all__ = ["Cluster", "ClusterError", "Paths", "ProcessStatus", "Status"]
