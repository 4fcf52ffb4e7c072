"""The one exception this package raises on purpose."""


class ClusterError(Exception):
    """Something the user can act on: the message says what happened and what to do about it."""
