"""TfIdf: texts as weights of their tokens, rare tokens weighing more, by frequencies learnt from other texts.

Always true: tokens are those of ``TextHash`` (``engines.tokens``), known by their 64-bit hashes, so that the state
holds numbers, not texts; document frequencies are exact, so values do not depend on the partitioning.
Trade-off: which word a column stands for cannot be read from the state; tokens whose hashes are equal (one pair
in 2**64) are one token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.engines.arrow import HostArray
from featurestore.engines.hashing import HASH_VERSION
from featurestore.engines.protocol import Engine, Frame
from featurestore.engines.tokens import UNITS
from featurestore.errors import DefinitionError, SchemaError
from featurestore.fingerprint import fingerprint
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import (
    Columns,
    Partition,
    Scope,
    Slicing,
    State,
    encode,
)
from featurestore.transforms.count_learner import CountLearner
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import fixed_bytes
from featurestore.transforms.hash_buckets import check_buckets
from featurestore.transforms.text_hash import normalise_ngrams, run_sizes, token_hashes
from featurestore.transforms.value_counts import (
    combine_counts,
    most_frequent,
    most_frequent_first,
    require_rows,
)

_TERMS: Final = "terms"
_DOCUMENTS: Final = "documents"
_BLOCK: Final = 1024
_BLOCK_CELLS: Final = 2**20
_BYTE_BYTES: Final = 120
"""What is computed per byte of a block's texts: code points, tokens, their hashes and order."""
_SHORT_WORDS: Final = 2**16
"""More than there are words of one and two bytes."""
_VERSION: Final = 1


@dataclass(frozen=True)
class TfIdf(CountLearner):
    """A text as ``[size]`` weights: how often a token occurs in it, times how rare it is among texts.

    A weight is ``count * (ln((1 + texts) / (1 + texts with the token)) + 1)``; a row's weights are then divided by
    their Euclidean norm. Columns are the ``size`` tokens that most texts of the fit scope have, in that order; or
    with ``hashed`` buckets, into which all tokens are hashed.

    Scope: fit. State: 16 bytes per different token, of at most ``size`` buckets with ``hashed``. Boundary rule: all
    texts of the fit scope, the row's own included if it is one of them. Null rule: a null is no text; it gets 0
    throughout, as does a text without a learnt token. With fewer tokens than ``size`` the last columns are 0.
    Output: a tensor ``float32 [rows, size]``.
    Memory: for 1,024 rows at a time, 120 bytes per byte of text and for each size of run, and 16 bytes per row
    and column. To learn, as much and three times the state, which is taken to have a token for every two
    bytes of text: nobody knows before how many there are.

    Parameters
    ----------
    column : str
        A string column.
    size : int
        How many weights a row has.
    hashed : bool
    unit, ngrams, lowercase
        What a token is; as in :class:`~featurestore.transforms.text_hash.TextHash`.
    min_count : int
        In how many texts a token must be to get a column.
    seed : int
        Another seed gives other buckets.
    output : str, optional
        By default ``<column>_tfidf``.

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
    >>> part = Partition(engine.from_arrow(pa.table({"news": ["Up, up!", None, "down up"]})), schema)
    >>> code = TfIdf("news", 2)
    >>> state = code.finish(code.summarize(part, engine))
    >>> code.apply(part, state, engine).tensors["news_tfidf"].round(3).tolist()
    [[1.0, 0.0], [0.0, 0.0], [0.5799999833106995, 0.8149999976158142]]
    """

    column: str
    size: int = 1024
    _: KW_ONLY
    hashed: bool = False
    unit: str = "words"
    ngrams: int | tuple[int, int] = 1
    lowercase: bool = True
    min_count: int = 1
    seed: int = 0
    output: str | None = None

    def __post_init__(self) -> None:
        check_buckets(self.size, self.seed, "TfIdf")
        object.__setattr__(self, "ngrams", normalise_ngrams(self.ngrams, "TfIdf"))
        if self.unit not in UNITS or type(self.min_count) is not int or self.min_count < 1:
            raise DefinitionError(
                f"TfIdf has unit={self.unit!r} and min_count={self.min_count!r}",
                f"choose from {list(UNITS)}, and a number from 1",
            )

    @property
    def scope(self) -> Scope:
        return Scope.FIT

    @property
    def slicing(self) -> Slicing:
        return Slicing.ROWS

    @property
    def _sizes(self) -> range:
        return run_sizes(self.ngrams)

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        one = schema[self.column]
        if one.is_tensor or not one.is_string:
            raise SchemaError(
                f"TfIdf takes texts; column {self.column!r} is {one.type}", "name a string column"
            )
        return (self.column,)

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        self.inputs(schema)
        name = f"{self.column}_tfidf" if self.output is None else self.output
        return (Field(name, pa.float32(), (self.size,)),)

    # --- learning --------------------------------------------------------------------------------

    def summarize(self, partition: Partition, engine: Engine) -> State:
        frame, texts = partition.frame.select(self.column), 0
        found = [_counted(np.zeros(0, np.uint64), np.zeros(0, np.int64))]
        for where in _blocks(len(frame), _BLOCK):
            block = _texts(frame, where, engine)
            texts += len(block) - block.null_count
            hashes, rows = self._tokens(block)
            order = np.lexsort((hashes, rows))
            hashes, rows = hashes[order], rows[order]
            fresh = np.ones(len(hashes), np.bool_)
            fresh[1:] = (hashes[1:] != hashes[:-1]) | (rows[1:] != rows[:-1])
            found.append(_counted(*np.unique(hashes[fresh], return_counts=True)))
        terms = combine_counts([{_TERMS: one} for one in found])[_TERMS]
        known = _counted(np.zeros(1, np.uint64), np.array([texts]))
        return {_TERMS: terms, _DOCUMENTS: known}

    def _tokens(self, texts: pa.StringArray) -> tuple[HostArray, HostArray]:
        """Return what tokens are known by, and whose they are."""
        made = token_hashes(texts, self.unit, self._sizes, self.seed, lowercase=self.lowercase)
        return (made[0] % np.uint64(self.size), made[1]) if self.hashed else made

    def narrow(self, state: State) -> State:
        return {
            name: counts
            if name == _DOCUMENTS
            else most_frequent({name: counts}, self.size, self.min_count)[name]
            for name, counts in state.items()
        }

    def most_kept(self, table: str) -> int | None:
        return None if table == _DOCUMENTS else self.size

    def finish(self, state: State) -> State:
        """Return the tokens in ascending order of their hashes, their columns and how rare they are."""
        require_rows(state)
        terms = self.narrow(state)[_TERMS].combine_chunks()
        terms = terms.take(pc.sort_indices(terms, [("value", "ascending")]))
        values = terms["value"].to_numpy()
        if self.hashed:
            place = values.astype(np.int32)
        else:
            ranked = most_frequent_first(terms).to_numpy()
            place = np.empty(len(values), dtype=np.int32)
            place[np.searchsorted(values, ranked)] = np.arange(len(values), dtype=np.int32)
        texts = int(state[_DOCUMENTS]["count"].to_numpy().sum())
        rarity = np.log((1.0 + texts) / (1.0 + terms["count"].to_numpy())) + 1.0
        return {_TERMS: pa.table({"value": values, "place": place, "rarity": rarity})}

    # --- applying --------------------------------------------------------------------------------

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        (target,) = self.outputs(partition.schema)
        frame = partition.frame.select(self.column)
        out = np.zeros((len(frame), self.size), np.float32)
        learnt = [state[_TERMS][name].to_numpy() for name in ("value", "place", "rarity")]
        for where in _blocks(len(frame), max(1, min(_BLOCK, _BLOCK_CELLS // self.size))):
            hashes, rows = self._tokens(_texts(frame, where, engine))
            out[where] = _weights(hashes, rows, learnt, out[where].shape)
        return Columns(tensors={target.name: engine.from_host(out)})

    # --- what it costs -----------------------------------------------------------------------------

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        rows = min(extent.rows, _BLOCK)
        cells = min(rows * self.size, max(_BLOCK_CELLS, self.size))
        return self._token_bytes(extent) + 16 * cells

    def _token_bytes(self, extent: Extent) -> int:
        rows = min(extent.rows, _BLOCK)
        text = min(extent.input_bytes, rows * (extent.widest_row or extent.input_bytes))
        return _BYTE_BYTES * text * len(self._sizes)

    def summarize_memory(self, schema: TableSchema, extent: Extent) -> int:
        return self._token_bytes(extent) + 3 * self.state_bytes(schema, extent)

    def state_bytes(self, schema: TableSchema, extent: Extent) -> int:
        tokens = sum(self._most_tokens(size, extent.input_bytes) for size in self._sizes)
        return 16 * (min(tokens, self.size) if self.hashed else tokens) + 2**10

    def _most_tokens(self, size: int, text: int) -> int:
        """Return how many different tokens of ``size`` units so many bytes of text may have."""
        if self.unit == "characters":
            return text
        # A word has a byte, and another before the next one; words that differ are soon longer than two.
        return text // 2 + 1 if size > 1 else min(text // 2 + 1, _SHORT_WORDS + text // 4)

    def output_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return sum(fixed_bytes(one, extent.rows) for one in self.outputs(schema))

    def state_fingerprint(self) -> str:
        asked = [self.unit, encode(self.ngrams), self.lowercase, self.seed]
        buckets = self.size if self.hashed else None
        return fingerprint("tokens", _VERSION, HASH_VERSION, self.column, asked, buckets)


def _blocks(rows: int, size: int) -> Iterator[slice]:
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def _texts(frame: Frame, where: slice, engine: Engine) -> pa.StringArray:
    block = engine.to_arrow(frame[where])
    return block.column(0).combine_chunks()


def _counted(values: HostArray, counts: HostArray) -> pa.Table:
    return pa.table({"value": values, "count": counts.astype(np.int64)})


def _weights(
    hashes: HostArray, rows: HostArray, learnt: Sequence[HostArray], shape: tuple[int, ...]
) -> HostArray:
    """Return the weights of some rows, float64."""
    values, place, rarity = learnt
    out = np.zeros(shape)
    if len(values) and len(hashes):
        at = np.minimum(np.searchsorted(values, hashes), len(values) - 1)
        known = values[at] == hashes
        at, rows = at[known], rows[known]
        np.add.at(out.reshape(-1), rows * shape[1] + place[at], 1.0)
        out[:, place] *= rarity
        norm = np.sqrt((out * out).sum(axis=1))
        out /= np.where(norm > 0, norm, 1.0)[:, None]
    return out
