"""Decisions, one file per custom kind: pure functions of what was observed."""
