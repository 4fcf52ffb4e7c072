"""Addresses of the network."""

from __future__ import annotations


def host_port(host: str, port: int | str) -> str:
    """As a URL has it: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
