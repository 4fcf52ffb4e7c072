"""Kubernetes quantities as numbers."""

from __future__ import annotations

from decimal import Decimal

from kubernetes.utils.quantity import parse_quantity


def amount(quantity: str | int) -> Decimal:
    """The number that a quantity such as 80Gi, 500m or 2 stands for."""
    result: Decimal = parse_quantity(quantity)  # type: ignore[no-untyped-call]
    return result
