"""What a machine's owner or a project says once instead of in every call: ``featurestore.toml``.

    [limits]
    memory_limit = "2GiB"
    scratch = "/fast/tmp"        # relative paths begin at the file's folder
    scratch_limit = "200GiB"

One file counts: the one that ``FEATURESTORE_CONFIG`` names, else that of the working directory, else that of the
user's configuration folder (``~/.config/featurestore``). Environment variables come before it
(``FEATURESTORE_MEMORY_LIMIT``, ``FEATURESTORE_SCRATCH``, ``FEATURESTORE_SCRATCH_LIMIT``), arguments before both.

Always true: what is not understood is refused with the file's name, so that no misspelt limit is a limit
nobody keeps. It is read when a store is opened, never at import.
"""

from __future__ import annotations

import os
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeVar

from featurestore.arguments import shown
from featurestore.errors import InvalidInputError, NotFoundError
from featurestore.units import parse_bytes

NAME: Final = "featurestore.toml"
CONFIG_VARIABLE: Final = "FEATURESTORE_CONFIG"
MEMORY_VARIABLE: Final = "FEATURESTORE_MEMORY_LIMIT"
SCRATCH_VARIABLE: Final = "FEATURESTORE_SCRATCH"
SCRATCH_LIMIT_VARIABLE: Final = "FEATURESTORE_SCRATCH_LIMIT"

_SECTION: Final = "limits"
PROJECT: Final = "project"
"""The section of definitions as code, which ``featurestore.project`` reads."""
_EXAMPLE: Final = 'write them like\n    [limits]\n    memory_limit = "2GiB"'

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Configuration:
    """What the environment and a configuration file say; None where they say nothing.

    Parameters
    ----------
    memory_limit : int, optional
        Bytes.
    scratch : Path, optional
        Where large steps put what does not fit in memory.
    scratch_limit : int, optional
        Bytes they may take there together.
    """

    memory_limit: int | None = None
    scratch: Path | None = None
    scratch_limit: int | None = None

    @property
    def scratch_folder(self) -> Path:
        """Where scratch files go: the system's folder for temporary files if nothing is said."""
        return Path(tempfile.gettempdir()) if self.scratch is None else self.scratch


def load_configuration(environment: Mapping[str, str] | None = None) -> Configuration:
    """Return what environment variables say, and for the rest the configuration file.

    Parameters
    ----------
    environment : mapping of str to str, optional
        This process's, if not given.

    Raises
    ------
    NotFoundError
        If ``FEATURESTORE_CONFIG`` names no file.
    InvalidInputError
        If the file cannot be read, or something in it or in a variable is not understood.

    Examples
    --------
    >>> load_configuration({"FEATURESTORE_MEMORY_LIMIT": "1GiB", "HOME": "/nowhere"}).memory_limit
    1073741824
    """
    environment = os.environ if environment is None else environment
    path = find_file(environment)
    written = Configuration() if path is None else read_file(path)

    def either(name: str, read: Callable[[str], T], otherwise: T | None) -> T | None:
        value = environment.get(name)
        return _from_variable(name, value, read) if value else otherwise

    return Configuration(
        either(MEMORY_VARIABLE, parse_bytes, written.memory_limit),
        either(SCRATCH_VARIABLE, directory, written.scratch),
        either(SCRATCH_LIMIT_VARIABLE, parse_bytes, written.scratch_limit),
    )


def find_file(environment: Mapping[str, str]) -> Path | None:
    """Return the configuration file that counts, if there is one.

    Raises
    ------
    NotFoundError
        If ``FEATURESTORE_CONFIG`` names no file.
    """
    named = environment.get(CONFIG_VARIABLE)
    if named:
        if Path(named).is_file():
            return Path(named)
        raise NotFoundError(
            f"{CONFIG_VARIABLE} names {named!r}, which is no file",
            "let it name a configuration file, or unset it",
        )
    for folder in (Path(), *_user_folders(environment)):
        try:
            if (folder / NAME).is_file():
                return folder / NAME
        except PermissionError:  # a home that is somebody else's has nothing to say
            continue
    return None


def read_file(path: Path) -> Configuration:
    """Return what a configuration file says.

    Raises
    ------
    InvalidInputError
        If it cannot be read, or something in it is not understood.
    """
    limits = read_section(path, _SECTION)
    readers: dict[str, Callable[[Any], Any]] = {
        "memory_limit": parse_bytes,
        "scratch": lambda value: directory(value, path.parent),
        "scratch_limit": parse_bytes,
    }
    only(limits, list(readers), f"{path}: [{_SECTION}] knows no")
    found = {}
    for name, value in limits.items():
        try:
            found[name] = readers[name](value)
        except InvalidInputError as error:
            raise InvalidInputError(
                f"{path}: [{_SECTION}] {name}: {error.problem}", error.remedy
            ) from error
    return Configuration(**found)


def read_section(path: Path, section: str) -> dict[str, Any]:
    """Return what a section of a configuration file says, unchecked; ``{}`` if it is not there.

    Raises
    ------
    InvalidInputError
        If the file cannot be read, or has a section that nobody knows.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInputError(f"{path} cannot be read as TOML: {error}", _EXAMPLE) from error
    only(content, [_SECTION, PROJECT], f"{path}: there is no section or key")
    found = content.get(section, {})
    if not isinstance(found, dict):
        raise InvalidInputError(f"{path}: {section} is {shown(found)}, no section", _EXAMPLE)
    return found


def directory(value: object, start: Path = Path()) -> Path:
    """Return an existing directory, as an absolute path; relative ones begin at ``start``.

    Raises
    ------
    InvalidInputError
        If it is none.
    """
    remedy = "name a directory that exists"
    if not isinstance(value, str | Path) or not str(value):
        raise InvalidInputError(f"{shown(value)} is no directory", remedy)
    try:
        path = (start / Path(value).expanduser()).resolve()
    except RuntimeError as error:  # ~somebody who is not known here
        raise InvalidInputError(f"{shown(value)} is no directory: {error}", remedy) from error
    if not path.is_dir():
        raise InvalidInputError(f"there is no directory {str(path)!r}", remedy)
    return path


def only(content: Mapping[str, Any], known: list[str], problem: str) -> None:
    """Refuse names that are not known."""
    for name in content:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"it may hold {known}; {_EXAMPLE}"
            raise InvalidInputError(f"{problem} {name!r}", remedy)


def _from_variable(name: str, value: str, read: Callable[[str], T]) -> T:
    try:
        return read(value)
    except InvalidInputError as error:
        raise InvalidInputError(f"the variable {name}: {error.problem}", error.remedy) from error


def _user_folders(environment: Mapping[str, str]) -> list[Path]:
    chosen = environment.get("XDG_CONFIG_HOME")
    if chosen:
        return [Path(chosen) / "featurestore"]
    home = environment.get("HOME") or environment.get("USERPROFILE")
    return [Path(home) / ".config" / "featurestore"] if home else []
