"""What the documentation names is there. `make docs` checks the links between the pages of docs/."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tunesmith.schema.crd import KINDS
from tunesmith_cluster.environments import ROOT

OUTSIDE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "cluster/README.md")]
OUTSIDE += [ROOT / "trainer-image/README.md", *ROOT.glob("examples/**/README.md")]
PAGES = [*OUTSIDE, *ROOT.glob("docs/**/*.md")]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", OUTSIDE, ids=name)
def test_links_outside_the_site_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
    own = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    assert [link for link in own if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_test_that_a_page_names_exists(path: Path) -> None:
    for file, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", path.read_text(encoding="utf-8")):
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not test or re.search(rf"^(async )?def {test}\b", text, re.MULTILINE), f"{file}::{test}"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_target_of_make_that_a_page_names_exists(path: Path) -> None:
    targets = set(re.findall(r"^([\w ]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    known = {target for line in targets for target in line.split()}
    for said in re.findall(r"`make ([a-z0-9 ]+)(?: [A-Z_]+=\S+)*`", path.read_text(encoding="utf-8")):
        assert set(said.split()) <= known, said


def test_each_kind_and_each_claim_of_a_level_has_its_place() -> None:
    for kind in KINDS:
        assert (ROOT / "docs" / "kinds" / f"{kind.name.lower()}.md").is_file()
    levels = (ROOT / "docs/capability-levels.md").read_text(encoding="utf-8").split("\n## ")[1:]
    assert [level.partition(":")[0] for level in levels] == [
        f"Level {number}" for number in ("I", "II", "III", "IV", "V")
    ]
    for level in levels:
        rows = re.findall(r"^\| (?!claim|---)(.+) \| (.+) \|$", level, re.MULTILINE)
        assert rows
        assert all("`tests/" in shown for _, shown in rows)
