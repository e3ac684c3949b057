"""Embed: vectors that an encoder makes of texts or arrays, each content encoded once.

Always true: a row's vector depends on its own content only, and is the one that was made when that
content was first seen; appending, replacing and building again call the encoder for new contents only.
Trade-off: the vectors live in a local cache beside the store (``storage.vector_cache``), a second copy
that may be deleted at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import fields as fields_of
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa

from featurestore.arguments import shown
from featurestore.engines.arrow import HostArray
from featurestore.engines.protocol import Engine
from featurestore.errors import DefinitionError, NotPartitionIndependentError, SchemaError
from featurestore.fingerprint import Json, fingerprint
from featurestore.schema import Field, TableSchema
from featurestore.storage.vector_cache import VectorCache, Vectors, cache_folder, content_digest
from featurestore.transforms.base import (
    Columns,
    Partition,
    Scope,
    Slicing,
    State,
    Transformer,
    decode,
    encode,
)
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import fixed_bytes
from featurestore.transforms.function_ref import FunctionRef

_BLOCK: Final = 4096
"""Rows whose contents are Python objects at one time."""
_OBJECTS: Final = 480
"""Bytes per row of a block beside its content: two objects, a digest, and where they are listed."""
_TRIED: Final = 8
_TOLERANCE: Final = 1e-3


_KINDS: Final[Mapping[str, type]] = {
    "column": str, "function": FunctionRef, "output": str, "params": dict, "fill_value": float,
    "cache": bool,
}  # fmt: skip


@dataclass(frozen=True, init=False)
class Embed(Transformer):
    """Vectors of texts or arrays, kept as a tensor ``float32 [rows, size]``.

    Scope: none; no state. Null rule: a null text is not encoded; its vector is ``fill_value`` throughout.
    Arrays have no nulls. Boundary rule: a vector depends on the row's own content only.
    State: none; vectors are kept in a local cache, ``4 * size`` bytes for each different content.
    Memory: the vectors of 4,096 rows, their contents twice, and 480 bytes for each of these rows; the
    encoder's own memory is not counted, nor limited.

    Parameters
    ----------
    column : str
        A string column, or a tensor column.
    encoder : callable
        ``encoder(contents, **params)``: takes a list of strings, or an array ``[n, ...]``, and returns an
        array ``[n, size]``. What it makes of one content must not depend on the others.
    size : int
        Numbers per vector.
    batch_size : int
        How many contents the encoder is given at most.
    params : mapping, optional
        Keyword arguments for it. Part of the definition: name the model and its revision here, as new
        weights under an old name cannot be noticed.
    fill_value : float
        Fills the vectors of null texts.
    cache : bool
        Whether vectors are looked up and kept under ``$FEATURESTORE_CACHE/vectors``, by default
        ``~/.cache/featurestore/vectors``.
    output : str, optional
        By default ``<column>_embedded``.

    Raises
    ------
    DefinitionError
        If the encoder is no function with source, or returns something else.
    NotPartitionIndependentError
        If, on a sample, what it makes of a text depends on the others.

    Examples
    --------
    >>> from featurestore.engines.selection import get_engine
    >>> engine = get_engine("polars")
    >>> def lengths(texts):
    ...     return np.array([[len(one), one.count(" ")] for one in texts], dtype="float32")
    >>> schema = TableSchema((Field("news", pa.string()),))
    >>> part = Partition(engine.from_arrow(pa.table({"news": ["up", None, "up a bit"]})), schema)
    >>> embed = Embed("news", lengths, size=2, fill_value=0.0, cache=False)
    >>> embed.apply(part, {}, engine).tensors["news_embedded"].tolist()
    [[2.0, 0.0], [0.0, 0.0], [8.0, 2.0]]
    """

    column: str
    function: FunctionRef
    size: int
    output: str
    batch_size: int
    params: Mapping[str, Any]
    fill_value: float
    cache: bool

    stored_as: ClassVar[Mapping[str, str]] = {"fill_value": "missing"}

    def __init__(
        self,
        column: str,
        encoder: Callable[..., Any] | FunctionRef,
        size: int,
        *,
        batch_size: int = 256,
        params: Mapping[str, Any] | None = None,
        fill_value: float = float("nan"),
        cache: bool = True,
        output: str | None = None,
    ) -> None:
        ref = encoder if isinstance(encoder, FunctionRef) else FunctionRef.of(encoder)
        values: dict[str, Any] = {
            "column": column,
            "function": ref,
            "size": size,
            "output": f"{column}_embedded" if output is None else output,
            "batch_size": batch_size,
            # Through JSON and back, so that the encoder gets today what it gets after a reload.
            "params": decode(encode(dict(params or {}))),
            "fill_value": float(fill_value),
            "cache": bool(cache),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise DefinitionError(f"Embed has {name}={shown(value)}", f"give a {kind.__name__}")
        sizes = (self.size, self.batch_size)
        if any(type(one) is not int or one < 1 for one in sizes):
            raise DefinitionError(
                f"Embed has size={self.size!r} and batch_size={self.batch_size!r}",
                "give whole numbers from 1",
            )

    def __hash__(self) -> int:
        return hash(self.fingerprint())

    def __eq__(self, other: object) -> bool:
        # A fill value of NaN equals itself here.
        return isinstance(other, Embed) and self.spec() == other.spec()

    # --- what it is ----------------------------------------------------------------------------

    @property
    def scope(self) -> Scope:
        return Scope.NONE

    @property
    def slicing(self) -> Slicing:
        return Slicing.ROWS

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        one = schema[self.column]
        if not (one.is_string or one.is_tensor):
            raise SchemaError(
                f"Embed takes a text or a tensor; column {self.column!r} is {one.type}",
                "name a string column, or cast it to text with an Expression",
            )
        return (self.column,)

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        self.inputs(schema)
        return (Field(self.output, pa.float32(), (self.size,)),)

    def bound(self, sample: Partition, engine: Engine) -> Embed:
        """Return it, once what it makes of some contents was seen not to depend on the others."""
        contents = [one for one in self._contents(sample, slice(0, 256), engine) if one is not None]
        contents = contents[:_TRIED]
        if contents:
            together = self._encoded(contents)
            alone = np.concatenate([self._encoded([one]) for one in contents])
            finite = np.abs(together[np.isfinite(together)])
            scale = max(1e-30, float(finite.max(initial=0.0)))
            if not np.allclose(together, alone, rtol=0, atol=_TOLERANCE * scale, equal_nan=True):
                raise NotPartitionIndependentError(
                    f"encoder {self.function.name!r} gives other vectors for contents alone than "
                    "together",
                    "let it treat each content by itself (no normalisation over the batch)",
                )
        return self

    # --- what it does --------------------------------------------------------------------------

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        out = np.full((partition.rows, self.size), self.fill_value, np.float32)
        cache = self._cache(partition.schema) if self.cache else None
        for start in range(0, partition.rows, _BLOCK):
            where = slice(start, start + _BLOCK)
            self._fill(out[where], self._contents(partition, where, engine), cache)
        return Columns(tensors={self.output: engine.from_host(out)})

    def _fill(self, out: Vectors, contents: Sequence[Any], cache: VectorCache | None) -> None:
        """Put the vectors of some rows where they belong; equal contents are looked at once."""
        first: dict[bytes, int] = {}
        rows, which = [], []
        for row, one in enumerate(contents):
            if one is not None:
                digest = content_digest(_bytes_of(one))
                rows.append(row)
                which.append(first.setdefault(digest, len(first)))
        if not rows:
            return
        chosen: list[Any] = [None] * len(first)
        for row, position in zip(rows, which, strict=True):
            chosen[position] = contents[row]

        def made(positions: Sequence[int]) -> Vectors:
            return self._encoded([chosen[one] for one in positions])

        if cache is not None:
            vectors = cache.get(list(first), made, self.batch_size)
        else:
            steps = range(0, len(chosen), self.batch_size)
            all_ = range(len(chosen))
            vectors = np.concatenate([made(all_[one : one + self.batch_size]) for one in steps])
        out[rows] = vectors[which]

    def _contents(self, partition: Partition, where: slice, engine: Engine) -> list[Any]:
        """Return the contents of some rows: texts, None for null; or arrays."""
        if partition.schema[self.column].is_tensor:
            return list(engine.to_host(partition.tensors[self.column][where]))
        frame = partition.frame.select(self.column)[where]
        out: list[Any] = engine.to_arrow(frame)[self.column].to_pylist()
        return out

    def _encoded(self, contents: Sequence[Any]) -> Vectors:
        texts = isinstance(contents[0], str)
        encoder = self.function.resolve()
        try:
            value = encoder(list(contents) if texts else np.stack(contents), **dict(self.params))
            array = np.asarray(value)
        # Whatever a user's encoder raises is shown as that.
        except Exception as error:
            raise DefinitionError(
                f"encoder {self.function.name!r} failed on {len(contents)} contents: "
                f"{type(error).__name__}: {error}",
                "correct the encoder; the cause is shown above",
            ) from error
        if array.shape != (len(contents), self.size) or array.dtype.kind not in "iuf":
            raise DefinitionError(
                f"encoder {self.function.name!r} returned {array.dtype} {array.shape} for "
                f"{len(contents)} contents",
                f"return numbers of shape [{len(contents)}, {self.size}]",
            )
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite
            return array.astype(np.float32)  # a copy: encoders may use their array again

    def _cache(self, schema: TableSchema) -> VectorCache:
        one = schema[self.column]
        kind: list[Json] = [str(one.type), list(one.shape or ())]
        params = encode(dict(self.params))
        name = fingerprint("vectors", self.function.code, params, self.size, kind)
        return VectorCache(cache_folder("vectors") / f"{name}.sqlite", self.size)

    # --- what it costs, and its identity ---------------------------------------------------------

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        rows = min(extent.rows, _BLOCK)
        widest = extent.widest_row or extent.input_bytes
        contents = min(extent.input_bytes, rows * widest)
        return 3 * 4 * self.size * rows + 2 * contents + _OBJECTS * rows

    def output_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return sum(fixed_bytes(one, extent.rows) for one in self.outputs(schema))

    def fingerprint(self) -> str:
        """Return the fingerprint of what makes its values; how they are kept does not count."""
        values: dict[str, Json] = {
            one.name: encode(getattr(self, one.name))
            for one in fields_of(self)
            if one.name not in ("function", "cache", "batch_size")
        }
        return fingerprint("definition", "Embed", self.version, self.function.code, values)

    def code(self) -> str | None:
        return self.function.code

    def current_code(self) -> str | None:
        return self.function.current_code()

    def unknown_code(self) -> DefinitionError | None:
        return self.function.unknown_code()


def _bytes_of(content: str | HostArray) -> bytes:
    return content.encode() if isinstance(content, str) else content.tobytes()
