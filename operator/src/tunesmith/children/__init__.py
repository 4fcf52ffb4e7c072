"""Builders of child objects, one file per use: pure, resource and plan in, Kubernetes object out."""
