"""What makes one set of pages work on a code host and as a site: `mkdocs.yml` names this file.

Pages are written for the code host: they link to files beside `docs/` (`../benchmarks/...`) and to the
anchors that code hosts make of headings. Here such files become files of the site, below `repository/`,
and headings get the same anchors.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parent.parent
# A link out of docs/, as deep as pages lie: "](../examples/train.toml)" or "](../../README.md#anchor)".
_OUTSIDE = re.compile(r"\]\((?P<up>(?:\.\./)+)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify
    return config


def slugify(heading: str, separator: str) -> str:
    """Return the anchor of a heading as code hosts make it: runs of hyphens stay."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)


def on_files(files: Files, config: Any) -> Files:
    """Add what pages link to outside of docs/; pages of text are shown as they are."""
    for page in list(files.documentation_pages()):
        for link in _OUTSIDE.finditer(page.content_string):
            path = outside(page.src_uri, link)
            target = path and f"repository/{path}"
            if path and target not in files.src_uris:
                content = (ROOT / path).read_bytes()
                files.append(
                    File.generated(
                        config, target, content=content, inclusion=InclusionLevel.NOT_IN_NAV
                    )
                )
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    def inside(link: re.Match[str]) -> str:
        path = outside(page.file.src_uri, link)
        if path is None:
            return link[0]
        up = "../" * page.file.src_uri.count("/")
        return f"]({up}repository/{path}{link['anchor'] or ''})"

    return _OUTSIDE.sub(inside, markdown)


def outside(page: str, link: re.Match[str]) -> str | None:
    """Return the path in the repository that a page's link names, if it is a file outside of docs/."""
    docs = ROOT / "docs"
    target = ((docs / page).parent / (link["up"] + link["path"])).resolve()
    if target.is_relative_to(docs) or not target.is_file():
        return None
    return target.relative_to(ROOT).as_posix()
