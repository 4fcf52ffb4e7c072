"""mkdocs' hook: links of pages to files outside docs/ lead to the repository, and must lead to something there."""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(?<=\]\()((?:\.\./)+[^)#\s]+)")
log = logging.getLogger("mkdocs.hooks.tunesmith")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """The page with such links made whole. A warning fails `mkdocs build --strict`."""
    root, docs = Path(config["config_file_path"]).parent, Path(config["docs_dir"])
    folder = posixpath.dirname(page.file.src_uri)

    def whole(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(docs.name, folder, link[1]))
        if target.startswith(f"{docs.name}/") and target.endswith(".md"):
            return link[1]
        if not (root / target).exists():
            log.warning("%s: there is no %s in the repository", page.file.src_uri, target)
        kind = "tree" if (root / target).is_dir() else "blob"
        return f"{config['repo_url']}/{kind}/main/{target}"

    return LINK.sub(whole, markdown)
