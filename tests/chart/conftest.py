"""Rendering the chart with the real helm."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from chart.support import CHART, NAMESPACE, Manifests, Refused, Render
from tunesmith_cluster import tools
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.progress import Reporter


class Strict(yaml.CSafeLoader):
    """As kubectl reads: a key that is there twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuses what a dict would swallow."""
        found = super().construct_mapping(node, deep)
        assert len(found) == len(node.value), f"a key is there twice: {node.start_mark}"
        return found


@pytest.fixture(scope="session")
def helm() -> Callable[..., str]:
    """Run helm; returns its output, raises Refused."""
    binary = tools.find("helm", Paths.from_environment(), Reporter())

    def run(*arguments: str, values: str = "{}") -> str:
        command = [binary, *arguments, *(["--values", "-"] if arguments[0] == "template" else [])]
        done = subprocess.run(command, input=values, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Refused(done.stderr)
        return done.stdout

    return run


@pytest.fixture(scope="session")
def render(helm: Callable[..., str]) -> Render:
    """The manifests for some values, as a list."""

    @functools.cache
    def text(values: str) -> str:
        return helm("template", "tunesmith", str(CHART), "--namespace", NAMESPACE, values=values)

    def run(values: dict[str, Any] | None = None) -> Manifests:
        return [document for document in yaml.load_all(text(json.dumps(values or {})), Strict) if document]

    return run
