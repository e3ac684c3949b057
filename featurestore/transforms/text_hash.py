"""TextHash: texts as hashed token ids, or as counts of hashed tokens, without a vocabulary.

Always true: what a text becomes depends on the text only, and is the same on every engine and in every
version of this package: tokens follow a written rule (``engines.tokens``), and lower case is made code
point by code point by Arrow, on the host. Trade-off: tokens that share a bucket cannot be told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.engines.arrow import HostArray
from featurestore.engines.padding import KEPT, fill_rows
from featurestore.engines.protocol import Engine
from featurestore.engines.tokens import UNITS, hash_runs, hash_tokens
from featurestore.errors import DefinitionError, SchemaError
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import Columns, Partition, Scope, Slicing, State, Transformer
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import fixed_bytes
from featurestore.transforms.hash_buckets import check_buckets

_BLOCK: Final = 1024
_BYTE_BYTES: Final = 90
"""What is computed per byte of a block's texts: code points, tokens and their hashes."""
LONGEST_RUN: Final = 16


@dataclass(frozen=True)
class TextHash(Transformer):
    """A text as ``[length]`` ids of its tokens, or as ``[buckets]`` counts of them.

    A token is a word, or a character; with ``ngrams``, a run of them. A word is a longest run of ASCII
    letters, digits, ``_`` and characters beyond ASCII that are no punctuation, space or symbol.

    Scope: none. State: none. Null rule: a null is like an empty text: 0 throughout. Boundary rule: a value
    depends on its own row only. Output: with ``length``, ``int32 [rows, length]``, ids 1 to ``buckets`` in
    the order of the text, 0 behind the last; without, ``float32 [rows, buckets]``.
    Memory: for 1,024 rows at a time, 90 bytes per byte of text and for each size of run.

    Parameters
    ----------
    column : str
        A string column.
    buckets : int
        How many ids, or counts.
    length : int, optional
        Ids per row; without it, tokens are counted.
    unit : {"words", "characters"}
    ngrams : int or (int, int)
        How many units a token has, or from how many to how many: ``(1, 2)`` gives each word, followed by
        each with its next.
    lowercase : bool
        Whether texts are put in lower case first.
    keep : {"first", "last"}
        Which ids of a text that has more than ``length``.
    seed : int
        Another seed gives independent ids.
    output : str, optional
        By default ``<column>_ids`` or ``<column>_counts``.

    Raises
    ------
    DefinitionError
        For other numbers.
    SchemaError
        If the column holds no texts.

    Examples
    --------
    >>> from featurestore.engines.polars import PolarsEngine
    >>> engine, schema = PolarsEngine(), TableSchema((Field("news", pa.string()),))
    >>> part = Partition(engine.from_arrow(pa.table({"news": ["Up, up!", None, "down"]})), schema)
    >>> TextHash("news", 1000, length=3).apply(part, {}, engine).tensors["news_ids"].tolist()
    [[770, 770, 0], [0, 0, 0], [801, 0, 0]]
    """

    column: str
    buckets: int = 4096
    _: KW_ONLY
    length: int | None = None
    unit: str = "words"
    ngrams: int | tuple[int, int] = 1
    lowercase: bool = True
    keep: str = "first"
    seed: int = 0
    output: str | None = None

    def __post_init__(self) -> None:
        check_buckets(self.buckets, self.seed, "TextHash")
        object.__setattr__(self, "ngrams", normalise_ngrams(self.ngrams, "TextHash"))
        if self.length is not None and (type(self.length) is not int or self.length < 1):
            raise DefinitionError(f"TextHash has length={self.length!r}", "give a number from 1")
        if self.unit not in UNITS or self.keep not in KEPT:
            raise DefinitionError(
                f"TextHash has unit={self.unit!r} and keep={self.keep!r}",
                f"choose from {list(UNITS)} and {list(KEPT)}",
            )

    @property
    def _sizes(self) -> range:
        return run_sizes(self.ngrams)

    @property
    def scope(self) -> Scope:
        return Scope.NONE

    @property
    def slicing(self) -> Slicing:
        return Slicing.ROWS

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        one = schema[self.column]
        if one.is_tensor or not one.is_string:
            raise SchemaError(
                f"TextHash takes texts; column {self.column!r} is {one.type}",
                "name a string column",
            )
        return (self.column,)

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        self.inputs(schema)
        counted = self.length is None
        default = f"{self.column}_{'counts' if counted else 'ids'}"
        name = default if self.output is None else self.output
        if self.length is None:
            return (Field(name, pa.float32(), (self.buckets,)),)
        return (Field(name, pa.int32(), (self.length,)),)

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        (target,) = self.outputs(partition.schema)
        out = np.zeros(
            (partition.rows, *(target.shape or ())), np.dtype(target.type.to_pandas_dtype())
        )
        for start in range(0, partition.rows, _BLOCK):
            where = slice(start, start + _BLOCK)
            frame = partition.frame.select(self.column)[where]
            self._fill(out[where], engine.to_arrow(frame)[self.column].combine_chunks())
        return Columns(tensors={target.name: engine.from_host(out)})

    def _fill(self, out: HostArray, texts: pa.StringArray) -> None:
        hashes, rows = token_hashes(
            texts, self.unit, self._sizes, self.seed, lowercase=self.lowercase
        )
        buckets = (hashes % np.uint64(self.buckets)).astype(np.int64)
        if self.length is None:
            np.add.at(out.reshape(-1), rows * self.buckets + buckets, np.float32(1))
            return
        ends = np.cumsum(np.bincount(rows, minlength=len(out)))
        begins = np.concatenate([[0], ends[:-1]])
        fill_rows(out, begins, ends, buckets + 1, self.keep)

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        rows = min(extent.rows, _BLOCK)
        text = min(extent.input_bytes, rows * (extent.widest_row or extent.input_bytes))
        return _BYTE_BYTES * text * len(self._sizes) + 24 * rows * (self.length or 1)

    def output_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return sum(fixed_bytes(one, extent.rows) for one in self.outputs(schema))


def normalise_ngrams(given: int | tuple[int, int], kind: str) -> int | tuple[int, int]:
    """Return sizes of runs of tokens as they are kept in a definition.

    Raises
    ------
    DefinitionError
        For others than one from 1 to ``LONGEST_RUN``, or two in ascending order.
    """
    low, high = (given, given) if isinstance(given, int) else tuple(given)
    if any(type(one) is not int for one in (low, high)) or not 1 <= low <= high <= LONGEST_RUN:
        raise DefinitionError(
            f"{kind} has ngrams={given!r}",
            f"give a number from 1 to {LONGEST_RUN}, or two in ascending order",
        )
    return given if isinstance(given, int) else (low, high)


def run_sizes(ngrams: int | tuple[int, int]) -> range:
    """Return the sizes of the runs that are tokens."""
    low, high = (ngrams,) * 2 if isinstance(ngrams, int) else ngrams
    return range(low, high + 1)


def token_hashes(
    texts: pa.StringArray, unit: str, sizes: Sequence[int], seed: int, *, lowercase: bool
) -> tuple[HostArray, HostArray]:
    """Return the hashes of the tokens of texts, in order, and whose they are; a null has none."""
    hashes, rows = hash_tokens(*_utf8(texts, lowercase=lowercase), unit)
    return hash_runs(hashes, rows, sizes, seed)


def _utf8(texts: pa.StringArray, *, lowercase: bool) -> tuple[HostArray, HostArray]:
    """Return the offsets and bytes of texts, nulls as empty ones."""
    texts = pc.fill_null(texts, "")
    if lowercase:
        texts = pc.utf8_lower(texts)
    _, bounds, data = texts.buffers()
    if not len(texts):
        return np.zeros(1, np.int64), np.zeros(0, np.uint8)
    offsets = np.frombuffer(bounds, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    held = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return offsets.astype(np.int64) - int(offsets[0]), held[int(offsets[0]) : int(offsets[-1])]
