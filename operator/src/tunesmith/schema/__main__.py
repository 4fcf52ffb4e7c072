"""Write what is generated: `python -m tunesmith.schema ROOT` fills ROOT/crds, the chart, and tables of ROOT/docs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from tunesmith.cli import reference
from tunesmith.schema import docs
from tunesmith.schema.crd import KINDS, crd
from tunesmith.schema.pages import kind_page

HEADER = "# Generated from operator/src/tunesmith/api by `make generate`. Do not edit.\n"


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def main(root: Path) -> None:
    """Write one file per kind to both folders, and the pages of the documentation that are or hold tables."""
    docs.write(Path("."), root)
    _write(root / "docs" / "cli.md", reference.page())
    for kind in KINDS:
        _write(root / "docs" / "kinds" / f"{kind.name.lower()}.md", kind_page(kind))
        body = as_stored(crd(kind))
        name = f"{kind.plural}.yaml"
        _write(root / "crds" / name, HEADER + _yaml(body))
        # A template, since Helm never upgrades a chart's crds/ folder; kept on uninstall, since removing a CRD
        # removes every resource of its kind.
        body["metadata"]["annotations"] = {"helm.sh/resource-policy": "keep"}
        escaped = _yaml(body).replace("{{", '{{ "{{" }}')
        chart = f"{{{{- if .Values.crds.enabled }}}}\n{escaped}{{{{- end }}}}\n"
        _write(root / "helm" / "tunesmith" / "templates" / "crds" / name, HEADER + chart)


def as_stored(node: Any) -> Any:
    """Without empty `properties`, which the API server drops: to Argo CD they would be a difference for ever."""
    if isinstance(node, list):
        return [as_stored(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {key: as_stored(value) for key, value in node.items() if (key, value) != ("properties", {})}


def _yaml(body: object) -> str:
    return yaml.dump(body, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
