"""Files that people can read, written so that they are there whole after a power failure, or as before."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from featurestore.errors import CorruptionError


def flush(path: Path) -> None:
    """Make a file's bytes, or a directory's entries, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def building(name: str) -> str:
    """Return what a file is called until it is whole."""
    return f".{name}.building"


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people to read too; one that is there is replaced at once."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    unfinished = path.with_name(building(path.name))
    unfinished.write_text(text, "utf-8")
    flush(unfinished)
    unfinished.replace(path)


def read_json(path: Path, remedy: str = "") -> dict[str, Any]:
    """Return an object that :func:`write_json` wrote.

    Raises
    ------
    CorruptionError
        With the remedy, if it is missing, no JSON, or no object.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptionError(f"{path} cannot be read: {error}", remedy) from error
    if not isinstance(content, dict):
        raise CorruptionError(f"{path} holds no JSON object", remedy)
    return content
