"""The site of docs/: its nav and its files agree, its reference has every public name, it builds strictly."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import featurestore as fs
import training

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
_NAMED = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)
# What a browser would fetch by itself, unlike a link that somebody follows.
_FETCHED = re.compile(
    r"<(?:script|img|iframe|link(?![^>]*rel=.?canonical))\b[^>]*?(?:src|href)=[\"']?((?:https?:)?//[^\"'> ]+)"
)


def entries(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for one in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from entries(one)


def in_nav() -> list[str]:
    return list(entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))


def test_nav_and_files_agree() -> None:
    files = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    listed = in_nav()
    assert len(listed) == len(set(listed)), "a page is in nav twice"
    assert files == set(listed), "enter new pages below nav in mkdocs.yml"


def test_the_reference_has_every_public_name_once() -> None:
    named = [
        name
        for page in (DOCS / "reference").glob("*.md")
        for name in _NAMED.findall(page.read_text())
    ]
    public = {
        f"{getattr(package, name).__module__}.{name}"
        for package in (fs, training)
        for name in package.__all__
        if name != "FeatureStoreError"  # in featurestore.errors, as a whole
    }
    assert len(named) == len(set(named)), "a name is in the reference twice"
    expected = {*public, "featurestore.errors"}
    assert set(named) == expected, "enter public names as '::: module.name' in docs/reference/"


def test_pinned_versions_are_where_make_docs_finds_them() -> None:
    told = subprocess.run(
        ["make", "--dry-run", "--always-make", "docs"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert re.search(
        r"pip install --quiet \"mkdocs==\S+ \"mkdocs-material==\S+ \"mkdocstrings==", told
    )


@pytest.mark.slow
def test_the_site_builds_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: pip install 'featurestore[docs]'")
    for needed in ("material", "mkdocstrings"):
        importlib.import_module(needed)
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) >= len(in_nav())
    fetched = {url for page in pages for url in _FETCHED.findall(page.read_text())}
    assert not fetched
    reference = "".join(page.read_text() for page in (tmp_path / "reference").glob("*.html"))
    for name in ("Rolling", "FeatureStore", "Loader", "MemoryLimitError"):
        assert re.search(rf'id="[\w.]+\.{name}"', reference), name
    assert (tmp_path / "repository/benchmarks/results/loader.png").is_file()
