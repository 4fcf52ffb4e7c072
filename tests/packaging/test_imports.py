"""What the trainer takes from the operator's package is there. Its own tests need torch; this one is quick."""

from __future__ import annotations

import ast
from importlib import import_module
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
    assert [(module, name) for module, name in taken if not hasattr(import_module(str(module)), name)] == []
