"""A project's folder: ``featurestore.toml`` with a section that names its store and its features.

[project]
store = "golden"             # a path from here, or a URL
features = "features.py"     # what it is to hold
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from featurestore.arguments import shown
from featurestore.configuration import NAME, PROJECT, only, read_section
from featurestore.errors import InvalidInputError, NotFoundError

_KEYS: Final = ("store", "features")

_TOML: Final = """\
[project]
store = "golden"             # a path from here, or a URL such as s3://bucket/prefix
features = "features.py"     # what the store is to hold

# [limits]
# memory_limit = "2GiB"      # 60% of the machine if nothing is said
"""
_FEATURES: Final = '''\
"""What the store is to hold: `featurestore plan` compares, `featurestore apply` makes it so."""

import featurestore as fs

# One Definitions for each table, with the interface of a table of the store:
#
# flights = fs.Definitions("flights")
# flights.add(fs.Rolling("dep_delay", by="carrier", window="7d", stats=["mean"], closed="left"))
#
# @flights.feature(inputs=["distance"])
# def far(df):
#     return df["distance"] > 1000
'''
_TRAIN: Final = """\
# python -m training fit train.toml --output runs/first
[data]
store = "golden"             # relative to this file
table = "flights"            # put your own names here
features = ["dep_delay_mean_7d"]
label = "late"

[split]
kind = "time"
valid = 2013-10-01

[model]
kind = "xgboost"             # or "tabular" (Keras), or "your_module:function"
"""
_IGNORED: Final = """\
golden/
runs/
__pycache__/
"""
FILES: Final = {
    NAME: _TOML, "features.py": _FEATURES, "train.toml": _TRAIN, ".gitignore": _IGNORED,
}  # fmt: skip
"""What ``init`` writes."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A project as its ``featurestore.toml`` says.

    Parameters
    ----------
    store : str
        Path or URL.
    features : Path
    """

    store: str
    features: Path


def read_folder(folder: Path) -> Folder:
    """Return the project in a folder.

    Raises
    ------
    NotFoundError
        If there is none.
    InvalidInputError
        If what its file says is not understood.
    """
    path = folder / NAME
    said = read_section(path, PROJECT) if path.is_file() else {}
    if not said:
        raise NotFoundError(
            f"there is no {NAME} with a section [{PROJECT}] in {str(folder.resolve())!r}",
            "run featurestore init for a new project, change to a project's folder, or name "
            "STORE and TABLE",
        )
    only(said, list(_KEYS), f"{path}: [{PROJECT}] knows no")
    for name in _KEYS:
        if not isinstance(said.get(name), str) or not said[name]:
            raise InvalidInputError(
                f"{path}: [{PROJECT}] {name} is {shown(said.get(name))}, no text",
                f'write it like {name} = "{"golden" if name == "store" else "features.py"}"',
            )
    store = said["store"]
    return Folder(store if "://" in store else str(folder / store), folder / said["features"])


def make_folder(folder: Path) -> tuple[Path, ...]:
    """Write a small project's files into a folder, which is made if need be; return them.

    Raises
    ------
    InvalidInputError
        If one of them is there already; then nothing is written.
    """
    paths = {folder / name: text for name, text in FILES.items()}
    taken = [path for path in paths if path.exists()]
    if taken:
        raise InvalidInputError(
            f"{str(taken[0])!r} is there already", "name another folder, or move it away"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in paths.items():
        path.write_text(text, encoding="utf-8")
    return tuple(paths)
