"""Code identity: what a Python function computes, as JSON that changes when its result may change.

Covered: the function's syntax tree (comments, docstrings, annotations, formatting and its name do not
count), its defaults, what it closes over, and the globals it uses: constants by value, functions and
classes of the user's own modules by their source in turn, installed packages by name.

Always true: computing an identity imports nothing and calls none of the code. What cannot be
identified (a fitted model, an open file, a data frame) is refused rather than ignored: a silent gap
here would mean stale values. Trade-off: lambdas and functions without source are refused, because
byte code differs between versions of Python. Versions of installed packages do not count, or every
upgrade of NumPy would make every feature stale; where a package's release does change a feature's
values, say so in its ``params``.
"""

from __future__ import annotations

import ast
import dataclasses
import datetime as dt
import decimal
import dis
import enum
import functools
import inspect
import logging
import math
import re
import sys
import sysconfig
import textwrap
import tokenize
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import narwhals as nw
import numpy as np
import pyarrow as pa

from featurestore.errors import DefinitionError
from featurestore.fingerprint import Json, canonical_json, digest, fingerprint
from featurestore.transforms.base import Transformer, encode
from featurestore.transforms.expression_json import StoredExpression

_IGNORED: Final = frozenset({"kind", "type_comment", "type_params", "annotation", "returns", "ctx"})
_ROOT: Final = "<function>"
# A file that changed since it was imported may have anything in a function's lines.
_NO_SOURCE: Final = (OSError, TypeError, SyntaxError, tokenize.TokenError)
Seen: TypeAlias = "dict[int, str]"


def code_fingerprint(function: types.FunctionType) -> str:
    """Return the fingerprint of what ``function`` computes.

    Raises
    ------
    DefinitionError
        If it has no source, or uses a value that cannot be identified.
    """
    return fingerprint("code", 1, _function(function, {}))


def source_of(function: types.FunctionType) -> str:
    """Return a function's source text, dedented, as the author wrote it.

    Raises
    ------
    DefinitionError
        For lambdas and for functions defined where no source is kept.
    """
    if function.__name__ == "<lambda>":
        raise DefinitionError(
            "a lambda's source cannot be told apart from the line it stands in",
            "define it with def",
        )
    try:
        return textwrap.dedent(inspect.getsource(function.__code__))
    except _NO_SOURCE as error:
        raise DefinitionError(
            f"function {function.__qualname__!r} has no source that could be stored",
            "define it in a file or a notebook cell, not in exec() or python -c",
        ) from error


# --- functions and classes -----------------------------------------------------------------------------


def _function(function: types.FunctionType, seen: Seen) -> Json:
    code = function.__code__
    if id(function) in seen:
        return ["again", seen[id(function)]]
    seen[id(function)] = function.__qualname__ if seen else _ROOT
    where = f"function {function.__qualname__!r}"
    closure = {
        name: _cell(cell, f"{name!r}, closed over by {where}", seen)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True)
    }
    defaults = [_value(one, f"a default of {where}", seen) for one in function.__defaults__ or ()]
    keywords = {
        name: _value(one, f"the default of {name!r} of {where}", seen)
        for name, one in (function.__kwdefaults__ or {}).items()
    }
    return {
        "tree": _tree(_definition(function)),
        "defaults": defaults,
        "keywords": keywords,
        "closure": closure,
        "globals": _globals(function, where, seen),
    }


def _definition(function: types.FunctionType) -> ast.AST:
    """Return the syntax tree of a function, without name, decorators and defaults."""
    source = source_of(function)
    module = _parse(source, function.__qualname__)
    found = module.body[0] if module.body else None
    if not isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef):
        raise DefinitionError(
            f"the source of {function.__qualname__!r} does not start with def",
            "define it with def on lines of its own",
        )
    found.name = _ROOT
    found.decorator_list = []
    # Defaults are identified by their values, which may change where the text does not.
    found.args.defaults = []
    found.args.kw_defaults = []
    return found


def _parse(source: str, name: str) -> ast.Module:
    try:
        return ast.parse(source)
    except SyntaxError as error:
        raise DefinitionError(
            f"the source of {name!r} cannot be read: {error}",
            "define it with def on lines of its own",
        ) from error


def _tree(node: object) -> Json:
    """Return a syntax tree as JSON that is the same on all supported versions of Python."""
    if isinstance(node, ast.AST):
        fields: dict[str, Json] = {}
        if isinstance(node, ast.JoinedStr):
            # Some versions put empty strings between the parts, others do not.
            parts = [one for one in node.values if getattr(one, "value", None) != ""]
            return ["JoinedStr", [_tree(one) for one in parts]]
        for name, value in ast.iter_fields(node):
            if name in _IGNORED or value is None or value == []:
                continue
            shown = _without_docstring(value) if name == "body" else value
            fields[name] = _tree(shown)
        return [type(node).__name__, fields]
    if isinstance(node, list):
        return [_tree(one) for one in node]
    if node is None or isinstance(node, bool | int | str):
        return node if not isinstance(node, int) or abs(node) < 2**53 else repr(node)
    return [type(node).__name__, repr(node)]


def _without_docstring(body: Any) -> Any:
    if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
        value = body[0].value
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            return body[1:] or [ast.Pass()]
    return body


def _globals(function: types.FunctionType, where: str, seen: Seen) -> Json:
    out: dict[str, Json] = {}
    builtins: Any = function.__globals__.get("__builtins__", {})
    known = builtins if isinstance(builtins, dict) else vars(builtins)
    for name in sorted(set(_global_names(function.__code__))):
        if name == function.__name__:
            # It calls itself; while a decorator runs, the name is not bound or still to an old one.
            out[_ROOT] = ["again", seen[id(function)]]
        elif name in function.__globals__:
            value = function.__globals__[name]
            out[name] = _value(value, f"the global {name!r} used by {where}", seen)
        elif name not in known:
            raise DefinitionError(
                f"{where} uses {name!r}, which is not defined yet",
                "define it above the function",
            )
    return out


def _global_names(code: types.CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _class(type_: type, seen: Seen) -> Json:
    if id(type_) in seen:
        return ["again", seen[id(type_)]]
    seen[id(type_)] = type_.__qualname__
    try:
        source = textwrap.dedent(inspect.getsource(type_))
    except _NO_SOURCE as error:
        raise DefinitionError(
            f"class {type_.__qualname__!r} has no source that could be stored",
            "define it in a file, or pass its values through params=",
        ) from error
    bases = [
        _value(base, f"a base of class {type_.__qualname__!r}", seen) for base in type_.__bases__
    ]
    methods = {
        name: _function(one, seen)
        for name, one in sorted(vars(type_).items())
        if isinstance(one, types.FunctionType) and one.__code__.co_filename == _file_of(type_)
    }
    return {"class": _tree(_parse(source, type_.__qualname__)), "bases": bases, "methods": methods}


def _file_of(owner: type | types.ModuleType) -> str | None:
    try:
        return inspect.getsourcefile(owner)
    except TypeError:
        return None


# --- values --------------------------------------------------------------------------------------------


def _cell(cell: types.CellType, what: str, seen: Seen) -> Json:
    try:
        value = cell.cell_contents
    except ValueError as error:
        raise DefinitionError(
            f"{what} has no value yet", "define the feature after it has one"
        ) from error
    return _value(value, what, seen)


def _value(value: Any, what: str, seen: Seen) -> Json:
    plain = _plain(value)
    if plain is not None:
        return plain
    if isinstance(value, types.ModuleType):
        return _module(value)
    if isinstance(value, types.FunctionType | type):
        installed = _installed(sys.modules.get(value.__module__))
        if installed is not None:
            return ["installed", value.__module__, value.__qualname__, installed]
        return (
            _function(value, seen) if isinstance(value, types.FunctionType) else _class(value, seen)
        )
    if isinstance(value, types.BuiltinFunctionType | np.ufunc):
        owner = getattr(value, "__module__", None) or "builtins"
        return ["builtin", owner, value.__name__]
    if isinstance(value, functools.partial):
        parts = [_value(one, what, seen) for one in (value.func, *value.args)]
        return ["partial", parts, _mapping(value.keywords, what, seen)]
    if isinstance(value, types.MethodType):
        owner_ = _value(value.__self__, what, seen)
        return ["method", owner_, _value(value.__func__, what, seen)]
    if isinstance(value, list | tuple):
        return [type(value).__name__, [_value(one, what, seen) for one in value]]
    if isinstance(value, set | frozenset):
        return ["set", sorted((_value(one, what, seen) for one in value), key=canonical_json)]
    if isinstance(value, Mapping):
        return _mapping(value, what, seen)
    if dataclasses.is_dataclass(value):
        fields = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
        return ["instance", _value(type(value), what, seen), _mapping(fields, what, seen)]
    if hasattr(value, "__wrapped__"):
        return ["wrapped", _value(value.__wrapped__, what, seen)]
    raise DefinitionError(
        f"{what} is a {type(value).__module__}.{type(value).__qualname__}, whose value has no "
        "fingerprint: a change of it could not be noticed",
        "pass what the function needs of it through params=, or compute it inside the function",
    )


def _mapping(value: Mapping[Any, Any], what: str, seen: Seen) -> Json:
    pairs = [[_value(k, what, seen), _value(v, what, seen)] for k, v in value.items()]
    return ["mapping", sorted(pairs, key=canonical_json)]


def _plain(value: Any) -> Json:
    """Return the identity of a value without references, or None."""
    if value is None or isinstance(value, bool | str):
        return [type(value).__name__, value]
    if isinstance(value, enum.Enum):
        return ["enum", type(value).__qualname__, value.name, repr(value.value)]
    if isinstance(value, int | complex | decimal.Decimal | bytes | range):
        return [type(value).__name__, repr(value)]
    if isinstance(value, float):
        # repr gives the sign of zero and every digit; NaN has no equal, so it needs a name.
        return ["float", "nan" if math.isnan(value) else repr(value)]
    if isinstance(value, dt.date | dt.time | dt.timedelta | dt.tzinfo):
        return [type(value).__name__, repr(value)]
    if isinstance(value, re.Pattern):
        return ["pattern", repr(value.pattern), value.flags]
    if isinstance(value, Path):
        return ["path", value.as_posix()]
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufcSUmM":
        held = np.ascontiguousarray(value)
        return ["array", str(held.dtype), list(held.shape), digest(held.tobytes())]
    if isinstance(value, np.dtype | pa.DataType):
        return ["dtype", str(value)]
    if isinstance(value, Transformer):
        return ["transformer", value.fingerprint()]
    if isinstance(value, logging.Logger):
        return ["logger", value.name]
    if value is Ellipsis or value is NotImplemented:
        return ["constant", repr(value)]
    if isinstance(value, list | tuple | Mapping):
        return None
    try:
        if isinstance(value, nw.Expr):
            return ["expression", StoredExpression.of(value).text]
        return ["parameter", encode(value)]
    except DefinitionError:
        return None


# --- modules -------------------------------------------------------------------------------------------


def _module(module: types.ModuleType) -> Json:
    installed = _installed(module)
    if installed is not None:
        return ["module", module.__name__, installed]
    path = _file_of(module)
    if path is None or not Path(path).exists():
        return ["module", module.__name__]
    # Which of its functions are used is not known here, so all of the file counts.
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DefinitionError(
            f"the source of module {module.__name__!r} cannot be read: {error}",
            "make its file readable, or define what is used of it beside the function",
        ) from error
    return ["source", module.__name__, fingerprint(_tree(_parse(text, module.__name__)))]


def _installed(module: types.ModuleType | None) -> str | None:
    """Return what kind of installed code a module is, or None for the user's own code."""
    if module is None:
        return None
    top = module.__name__.partition(".")[0]
    if top in sys.stdlib_module_names or top == "builtins":
        return "python"
    path = getattr(module, "__file__", None)
    if path is None or not _is_site(path):
        return "featurestore" if top == "featurestore" else None
    return "installed"


def _is_site(path: str) -> bool:
    roots = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    return any(Path(path).is_relative_to(root) for root in roots) or "site-packages" in path
