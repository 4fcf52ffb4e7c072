"""The pod of tests/serving: a real vLLM, a real agent, and adapters made here."""

from serving.conftest import forge, pod  # noqa: F401  fixtures
