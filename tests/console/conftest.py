"""The console against a real API server, kubelet and operator; trainer pods are scripted, as in tests/integration."""

from integration.conftest import cluster, kubectl, running  # noqa: F401  fixtures
