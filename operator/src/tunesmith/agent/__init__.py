"""The adapter agent: a native sidecar of vLLM pods that makes the engine serve what it should."""
