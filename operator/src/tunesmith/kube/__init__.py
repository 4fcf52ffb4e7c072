"""The only place that talks to the API server (kopf's watches aside)."""
