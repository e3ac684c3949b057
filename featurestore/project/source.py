"""The file that holds a project's definitions, run to read them.

Always true: it is run anew each time, as the module of its name, so that functions in it are found
again by name from its folder; what goes wrong in it is one paragraph with file and line.
"""

from __future__ import annotations

import linecache
import sys
import traceback
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType

from featurestore.errors import DefinitionError, FeatureStoreError, NotFoundError
from featurestore.expectations.expectation import Expectation
from featurestore.project.definitions import Definitions, Stated, Wanted


def read_definitions(path: Path) -> Wanted:
    """Return what a file says belongs to which table, in the order in which it says so.

    Every :class:`Definitions` that has a name in the file counts.

    Raises
    ------
    NotFoundError
        If there is no such file.
    DefinitionError
        If it cannot be run, or says the same twice.
    """
    module = _run(path)
    named = {id(one): one for one in vars(module).values() if isinstance(one, Definitions)}.values()
    found: dict[str, tuple[Stated, ...]] = {}
    expected: dict[str, tuple[Expectation, ...]] = {}
    for one in named:
        found[one.table] = found.get(one.table, ()) + one.stated
        if one.expectations is not None:
            expected[one.table] = expected.get(one.table, ()) + one.expectations
    for table, stated in found.items():
        _refuse_repeated(path, table, stated)
    return Wanted(found, expected)


def _refuse_repeated(path: Path, table: str, stated: tuple[Stated, ...]) -> None:
    lines: dict[str, int] = {}
    for one in stated:
        key = one.definition.fingerprint
        if key in lines:
            raise DefinitionError(
                f"{path}, lines {lines[key]} and {one.line}: the same {one.definition.kind} is "
                f"defined twice for table {table!r}",
                "remove one of them",
            )
        lines[key] = one.line


def _run(path: Path) -> ModuleType:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NotFoundError(
            f"{path} cannot be read: {error}", "name the file in featurestore.toml: features ="
        ) from error
    name, folder = path.stem, str(path.parent.resolve())
    if not name.isidentifier() or name in sys.stdlib_module_names:
        raise DefinitionError(
            f"{path} is no file that Python can import by its name", "call it features.py"
        )
    if folder not in sys.path:
        sys.path.insert(0, folder)  # for what it imports, and for workers that look for it
    file = str(path.resolve())
    linecache.checkcache(file)  # functions show their source as it is now
    module = ModuleType(name)
    module.__file__ = file
    sys.modules[name] = module
    try:
        with redirect_stdout(sys.stderr):  # what it prints is no part of a plan that others read
            exec(compile(text, file, "exec"), vars(module))  # noqa: S102 - the reader's own file
    except SyntaxError as error:
        where = Path(error.filename or file).name
        shown = f": {error.text.strip()}" if error.text else ""
        raise DefinitionError(
            f"{where}, line {error.lineno}: {error.msg}{shown}", "correct that line"
        ) from error
    except FeatureStoreError as error:
        raise DefinitionError(f"{_where(error, file)}: {error.problem}", error.remedy) from error
    except (Exception, SystemExit) as error:
        raise DefinitionError(
            f"{_where(error, file)}: {type(error).__name__}: {error}",
            "the file is run to read its definitions; correct that line",
        ) from error
    return module


def _where(error: BaseException, file: str) -> str:
    """Return the last line of the file itself that an error came through."""
    lines = [
        one.lineno for one in traceback.extract_tb(error.__traceback__) if one.filename == file
    ]
    return f"{Path(file).name}, line {lines[-1]}" if lines else Path(file).name
