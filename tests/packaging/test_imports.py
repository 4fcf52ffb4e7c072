"""What the trainer takes from the operator's package is there. Its own tests need torch; this one is quick."""

from __future__ import annotations

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRAINER = ROOT / "trainer-image" / "src" / "tunesmith_trainer"


@pytest.mark.parametrize("path", sorted(TRAINER.rglob("*.py")), ids=lambda path: str(path.relative_to(TRAINER)))
def test_the_trainer_imports_names_that_exist(path: Path) -> None:
    taken = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "tunesmith"
        for alias in node.names
    ]
    assert [(module, name) for module, name in taken if not exists(str(module), name)] == []


def exists(module: str, name: str) -> bool:
    """Whether `from module import name` works: a module's name, or a module of a package."""
    return hasattr(import_module(module), name) or find_spec(f"{module}.{name}") is not None
