"""A reward that answers of a random model differ in: how many different characters they have."""

from __future__ import annotations


def reward(completions: list[str], **columns: object) -> list[float]:
    """One number for each answer."""
    return [float(len(set(completion))) for completion in completions]
