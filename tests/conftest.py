"""For all tests."""

from __future__ import annotations

from hypothesis import settings

# Other work on the machine is no failure: what is slow is for benchmarks to say.
settings.register_profile("tunesmith", deadline=None)
settings.load_profile("tunesmith")
