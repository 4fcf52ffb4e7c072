"""docs/threat-model.md names a test for each defence."""

from __future__ import annotations

import re

from tunesmith_cluster.environments import ROOT

TEXT = (ROOT / "docs/threat-model.md").read_text(encoding="utf-8")


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TEXT)
    assert len(named) > 20
    for path, name in named:
        assert re.search(rf"^(async )?def {name}\b" if name else "", (ROOT / path).read_text(), re.MULTILINE), (
            path,
            name,
        )


def test_every_exception_of_the_scans_has_its_reason() -> None:
    scans = (ROOT / "hack/security").read_text(encoding="utf-8")
    skipped = set(re.findall(r"\b(?:B\d{3}|CKV_[A-Z0-9]+_\d+)\b", scans))
    assert skipped == set(re.findall(r"\| (B\d{3}|CKV_[A-Z0-9]+_\d+) \|", TEXT))
