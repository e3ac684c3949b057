"""Narwhals expressions as JSON: written by walking their nodes, rebuilt from a closed list of operations.

A Narwhals expression is a sequence of nodes, each an operation with arguments that may be
expressions again. The list of nodes is private in Narwhals (``Expr._nodes``); this module is the
only place that touches it.

Always true: only operations of ``_OPERATIONS`` with their own parameters are written or rebuilt; all
of them are elementwise, none takes a callable. So a stored expression cannot run anything else,
whoever wrote it. Trade-off: an operation that a later Narwhals adds is refused until it is listed.
"""

from __future__ import annotations

import datetime as dt
import decimal
import json
import zoneinfo
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import narwhals as nw
import numpy as np
from narwhals._expression_parsing import ExprKind, ExprNode
from narwhals._utils import NO_DEFAULT

from featurestore.errors import DefinitionError, NotPartitionIndependentError
from featurestore.fingerprint import Json, canonical_json
from featurestore.transforms.base import register_codec

MAX_NODES: Final = 5000
MAX_DEPTH: Final = 100
_USE_FUNCTION: Final = "write it as a Function, or with operations that Expression can store"


def _operations() -> dict[str, frozenset[str]]:
    """Return which operations exist, and the names of their parameters."""
    plain = (
        "__eq__ __ne__ __lt__ __le__ __gt__ __ge__ __and__ __rand__ __or__ __ror__ __add__ __radd__ "
        "__sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __floordiv__ __rfloordiv__ "
        "__mod__ __rmod__ __pow__ __rpow__ __invert__ __neg__ abs floor ceil exp sin cos sqrt "
        "is_null is_nan is_finite clip clip_lower clip_upper _is_close_float_promote coalesce "
        "when_then sum_horizontal mean_horizontal min_horizontal max_horizontal "
        "dt.date dt.year dt.month dt.day dt.hour dt.minute dt.second dt.millisecond dt.microsecond "
        "dt.nanosecond dt.ordinal_day dt.weekday dt.total_minutes dt.total_seconds "
        "dt.total_milliseconds dt.total_microseconds dt.total_nanoseconds "
        "str.len_chars str.to_uppercase str.to_lowercase str.to_titlecase str.starts_with "
        "str.ends_with list.len list.min list.max list.mean list.median list.sum"
    )
    named = {
        "col": "names", "lit": "value dtype", "alias": "name", "cast": "dtype",
        "replace_strict": "default old new return_dtype", "is_between": "closed", "is_in": "other",
        "fill_null": "strategy limit", "fill_nan": "value", "round": "decimals", "log": "base",
        "any_horizontal": "ignore_nulls", "all_horizontal": "ignore_nulls",
        "concat_str": "separator ignore_nulls",
        "dt.to_string": "format", "dt.replace_time_zone": "time_zone",
        "dt.convert_time_zone": "time_zone", "dt.timestamp": "time_unit", "dt.truncate": "every",
        "dt.offset_by": "by", "str.replace": "pattern literal n",
        "str.replace_all": "pattern literal", "str.strip_chars": "characters",
        "str.strip_chars_start": "characters", "str.strip_chars_end": "characters",
        "str.contains": "pattern literal", "str.slice": "offset length", "str.split": "by",
        "str.to_datetime": "format", "str.to_date": "format", "str.to_time": "format",
        "str.zfill": "width", "str.pad_start": "length fill_char", "str.pad_end": "length fill_char",
        "list.contains": "item", "list.get": "index", "list.sort": "descending nulls_last",
    }  # fmt: skip
    return {name: frozenset() for name in plain.split()} | {
        name: frozenset(parameters.split()) for name, parameters in named.items()
    }


_OPERATIONS: Final = _operations()
_KINDS: Final = {"col": ExprKind.COL, "lit": ExprKind.LITERAL}
_REMEDIES: Final[Mapping[str, str]] = {
    "shift": "use Lag", "diff": "use Lag and subtract",
    "over": "use Rolling, Demean or GroupStats for values per group",
    "rank": "use Rank for ranks per timestamp",
    "filter": "select rows in the dataset; a feature has one value per row",
}  # fmt: skip
_DTYPES: Final = frozenset(
    [
        "Int8",
        "Int16",
        "Int32",
        "Int64",
        "UInt8",
        "UInt16",
        "UInt32",
        "UInt64",
        "Float32",
        "Float64",
        "String",
        "Boolean",
        "Date",
        "Time",
        "Binary",
    ]
)


@dataclass(frozen=True, slots=True)
class StoredExpression:
    """One Narwhals expression as a value that compares, hashes, pickles and is written as JSON.

    Parameters
    ----------
    text : str
        Canonical JSON of the nodes, outermost operation last.

    Examples
    --------
    >>> stored = StoredExpression.of(nw.col("distance") / nw.col("air_time"))
    >>> stored.columns
    ('distance', 'air_time')
    >>> StoredExpression.of(stored.rebuild()) == stored
    True
    """

    text: str

    @classmethod
    def of(cls, expression: nw.Expr) -> StoredExpression:
        """Read a Narwhals expression.

        Raises
        ------
        NotPartitionIndependentError
            If an operation looks at other rows.
        DefinitionError
            If it has content that cannot be stored.
        """
        return cls(canonical_json(_Writer().nodes(expression, 0)).decode())

    @classmethod
    def from_json(cls, value: Any) -> StoredExpression:
        """Check and keep nodes read from a store.

        Raises
        ------
        DefinitionError
            If they are anything but listed operations.
        """
        try:
            return cls.of(_Reader().nodes(value, 0))
        except RecursionError:
            raise DefinitionError("a stored expression nests too deep to be read") from None

    def to_json(self) -> Json:
        loaded: Json = json.loads(self.text)
        return loaded

    def rebuild(self) -> nw.Expr:
        """Return the Narwhals expression."""
        return _Reader().nodes(json.loads(self.text), 0)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads, in order of first use."""
        return tuple(dict.fromkeys(_columns(json.loads(self.text))))


class _Writer:
    """Turns nodes into JSON; counts them, so that a cycle or a monster ends in an error."""

    def __init__(self) -> None:
        self.count = 0

    def nodes(self, expression: nw.Expr, depth: int) -> list[Json]:
        # An aggregation inside ``over`` is not at fault by itself: name ``over`` first.
        for node in expression._nodes:
            if node.kind is ExprKind.OVER:
                _check_operation(node.name, node.kind, node.kwargs)
        return [self.node(node, depth) for node in expression._nodes]

    def node(self, node: ExprNode, depth: int) -> Json:
        self.count += 1
        _check_size(self.count, depth)
        _check_operation(node.name, node.kind, node.kwargs)
        out: dict[str, Json] = {"op": node.name}
        if node.exprs:
            out["args"] = [self.argument(one, depth) for one in node.exprs]
        if node.kwargs:
            out["kwargs"] = {name: _write(value) for name, value in node.kwargs.items()}
        if node.str_as_lit:
            out["strings_are_values"] = True
        if node.allow_multi_output:
            out["many"] = True
        _check_arity(out)
        return out

    def argument(self, value: Any, depth: int) -> Json:
        if isinstance(value, nw.Expr):
            return {"$nodes": self.nodes(value, depth + 1)}
        return _write(value)


class _Reader:
    """Turns JSON into nodes, and nothing else."""

    def __init__(self) -> None:
        self.count = 0

    def nodes(self, value: Any, depth: int) -> nw.Expr:
        if not isinstance(value, list | tuple) or not value:
            raise DefinitionError(f"{_shown(value)} is not a stored expression")
        nodes = [self.node(one, depth) for one in value]
        roots = [node for node in nodes if not _needs_input(node)]
        if len(roots) != 1 or roots[0] is not nodes[0]:
            raise DefinitionError("a stored expression must begin with its only column or value")
        return nw.Expr(*nodes)

    def node(self, value: Any, depth: int) -> ExprNode:
        self.count += 1
        _check_size(self.count, depth)
        if not isinstance(value, Mapping) or not isinstance(value.get("op"), str):
            raise DefinitionError(f"{_shown(value)} is not an operation of a stored expression")
        name, arguments, kwargs = value["op"], value.get("args", ()), value.get("kwargs", {})
        if not isinstance(arguments, list | tuple) or not isinstance(kwargs, Mapping):
            raise DefinitionError(f"operation {name!r} has malformed arguments")
        named = {str(key): _read(one) for key, one in kwargs.items()}
        kind = _KINDS.get(name, ExprKind.ELEMENTWISE)
        _check_operation(name, kind, named)
        expressions = tuple(self.argument(one, depth) for one in arguments)
        _check_arity(value)
        return ExprNode(
            kind,
            name,
            exprs=expressions,
            str_as_lit=value.get("strings_are_values") is True,
            allow_multi_output=value.get("many") is True,
            **named,
        )

    def argument(self, value: Any, depth: int) -> Any:
        if isinstance(value, Mapping) and set(value) == {"$nodes"}:
            return self.nodes(value["$nodes"], depth + 1)
        return _read(value)


# --- what is allowed ----------------------------------------------------------------------------------


def _check_size(count: int, depth: int) -> None:
    if count > MAX_NODES or depth > MAX_DEPTH:
        raise DefinitionError(
            f"an expression has more than {MAX_NODES} operations or {MAX_DEPTH} levels",
            "split it into several features",
        )


def _check_operation(name: str, kind: ExprKind, kwargs: Mapping[str, Any]) -> None:
    if kind in (ExprKind.NTH, ExprKind.ALL, ExprKind.EXCLUDE, ExprKind.SELECTOR):
        raise DefinitionError(
            f"{name}() picks columns by position or type, which changes when columns are added",
            "name the columns: nw.col('a', 'b')",
        )
    if kind is ExprKind.SERIES:
        raise DefinitionError("an expression holds a Series, which is data", _USE_FUNCTION)
    strategy = name == "fill_null" and kwargs.get("strategy") is not None
    if not kind.is_elementwise or strategy:
        shown = "fill_null(strategy=...)" if name == "fill_null" else name
        remedy = _REMEDIES.get(name, "use Lag, Rolling or Rank")
        raise NotPartitionIndependentError(
            f"{shown} makes a row's value depend on other rows, so it would change with the "
            "partitioning",
            f"{remedy}, or a fitted transformer in a Pipeline",
        )
    parameters = _OPERATIONS.get(name)
    if parameters is None or not parameters.issuperset(kwargs):
        shown = name if parameters is None else f"{name} with {sorted(set(kwargs) - parameters)}"
        raise DefinitionError(f"operation {_shown(shown)} cannot be stored", _USE_FUNCTION)
    if name.startswith("str.to_d") or name == "str.to_time":
        _check_format(name, kwargs.get("format"))


def _check_format(name: str, given: object) -> None:
    if not isinstance(given, str):
        raise NotPartitionIndependentError(
            f"{name} without a format guesses it from the rows it sees, each partition anew",
            "give format=, for example '%Y-%m-%d'",
        )


def _check_arity(node: Mapping[str, Any]) -> None:
    if node["op"] == "col":
        names = node.get("kwargs", {}).get("names")
        if not isinstance(names, list | tuple) or not all(isinstance(one, str) for one in names):
            raise DefinitionError(f"{_shown(names)} does not name columns")
        if not names:
            raise DefinitionError("nw.col() names no column", "name one")
        return
    if node.get("many") is True:
        return
    for argument in node.get("args", ()):
        if isinstance(argument, Mapping) and "$nodes" in argument:
            check_single(argument["$nodes"])


def check_single(nodes: Any) -> None:
    """Refuse nodes that yield several columns where one is wanted.

    Raises
    ------
    DefinitionError
    """
    first = nodes[0] if isinstance(nodes, list | tuple) and nodes else {}
    names = first.get("kwargs", {}).get("names", ()) if isinstance(first, Mapping) else ()
    if isinstance(first, Mapping) and first.get("op") == "col" and len(names) > 1:
        raise DefinitionError(
            f"nw.col{tuple(names)!r} yields {len(names)} columns where one is wanted",
            "write one expression per column",
        )


_ROOTS: Final = frozenset(
    [
        "col",
        "lit",
        "coalesce",
        "when_then",
        "sum_horizontal",
        "mean_horizontal",
        "min_horizontal",
        "max_horizontal",
        "any_horizontal",
        "all_horizontal",
        "concat_str",
    ]
)


def _needs_input(node: ExprNode) -> bool:
    return node.name not in _ROOTS


def _columns(nodes: Any) -> Iterator[str]:
    for node in nodes:
        if node["op"] == "col":
            yield from node["kwargs"]["names"]
        for argument in node.get("args", ()):
            if isinstance(argument, Mapping) and "$nodes" in argument:
                yield from _columns(argument["$nodes"])
            elif isinstance(argument, str) and not node.get("strings_are_values"):
                yield argument


# --- values --------------------------------------------------------------------------------------------


def _write(value: Any) -> Json:
    """Return a literal or parameter as JSON; what has no JSON form gets a tag."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, dt.datetime):
        return {"$datetime": [value.replace(tzinfo=None).isoformat(), value.fold, _zone(value)]}
    if isinstance(value, dt.date):
        return {"$date": value.isoformat()}
    if isinstance(value, dt.timedelta):
        return {"$timedelta": value // dt.timedelta(microseconds=1)}
    if isinstance(value, decimal.Decimal):
        return {"$decimal": str(value)}
    if isinstance(value, bytes):
        return {"$bytes": value.hex()}
    if value is NO_DEFAULT:
        return {"$no_default": True}
    if isinstance(value, nw.dtypes.DType) or (
        isinstance(value, type) and issubclass(value, nw.dtypes.DType)
    ):
        return {"$dtype": _write_dtype(value)}
    if isinstance(value, list | tuple | set | frozenset):
        items = [_write(one) for one in value]
        # A set has no order of its own; equal sets must have equal fingerprints.
        return sorted(items, key=canonical_json) if isinstance(value, set | frozenset) else items
    raise DefinitionError(
        f"an expression holds {_shown(value)} of type {type(value).__name__}, which cannot be stored",
        _USE_FUNCTION,
    )


def _read(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_read(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    tag, inner = next(iter(value.items())) if len(value) == 1 else ("", None)
    reader = _READERS.get(tag)
    if reader is None:
        raise DefinitionError(f"{_shown(value)} is not a value of a stored expression")
    try:
        return reader(inner)
    except (ValueError, TypeError, IndexError, ArithmeticError, zoneinfo.ZoneInfoNotFoundError):
        raise DefinitionError(f"{_shown(value)} is not a value of a stored expression") from None


def _zone(value: dt.datetime) -> str | None:
    if value.tzinfo is None:
        return None
    name = "UTC" if value.tzinfo is dt.UTC else getattr(value.tzinfo, "key", None)
    if not isinstance(name, str):
        raise DefinitionError(
            f"{value!r} has a time zone without a name", "use zoneinfo.ZoneInfo or UTC"
        )
    return name


def _read_datetime(value: Sequence[Any]) -> dt.datetime:
    text, fold, zone = value
    tz = None if zone is None else dt.UTC if zone == "UTC" else zoneinfo.ZoneInfo(zone)
    return dt.datetime.fromisoformat(text).replace(fold=fold, tzinfo=tz)


def _write_dtype(dtype: Any) -> Json:
    name = dtype.__name__ if isinstance(dtype, type) else type(dtype).__name__
    if name in _DTYPES:
        return name
    if name in ("Datetime", "Duration"):
        one = dtype() if isinstance(dtype, type) else dtype
        zone = [one.time_zone] if name == "Datetime" else []
        return [name, one.time_unit, *zone]
    if name == "List" and not isinstance(dtype, type):
        return [name, _write_dtype(dtype.inner)]
    raise DefinitionError(f"type {dtype!r} cannot be part of a stored expression", _USE_FUNCTION)


def _read_dtype(value: Any) -> Any:
    if isinstance(value, str) and value in _DTYPES:
        return getattr(nw, value)
    head, *rest = value
    if head == "Datetime":
        return nw.Datetime(*rest)
    if head == "Duration":
        return nw.Duration(*rest)
    if head == "List" and len(rest) == 1:
        return nw.List(_read_dtype(rest[0]))
    raise ValueError(value)


_READERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "$float": lambda text: float(str(text)),
    "$datetime": _read_datetime,
    "$date": dt.date.fromisoformat,
    "$timedelta": lambda microseconds: dt.timedelta(microseconds=int(microseconds)),
    "$decimal": lambda text: decimal.Decimal(str(text)),
    "$bytes": bytes.fromhex,
    "$no_default": lambda _: NO_DEFAULT,
    "$dtype": _read_dtype,
}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


register_codec(
    StoredExpression, "$expression", StoredExpression.to_json, StoredExpression.from_json
)
