"""What one task takes in bytes, of what is known before it runs: the terms, and how they add up.

Terms are added rather than the largest taken where different allocators serve them (Arrow reads and
writes, Polars and NumPy compute): what one has freed, another cannot use before the task's end. What
has to hold, and is tested: measured <= projected <= 2 x measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import pyarrow as pa

from featurestore.schema import Field, TableSchema
from featurestore.storage.group_writer import ROW_GROUP_BYTES, ROW_GROUP_ROWS
from featurestore.storage.state_parts import PART_BYTES
from featurestore.storage.tensor_group import CHUNK_BYTES
from featurestore.transforms.base import SourceTransformer, Transformer, row_width
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import VIEW, is_text, row_bits

_COMBINING: Final = 4
_DECODED: Final = 2
"""A value that fills a page by itself, beside the column: as the page, and in the file's dictionary."""
_TEXT_PAGES: Final = 24 * 2**20
"""What decoding texts takes at most: pages, dictionaries, and a piece that grows as they come (measured)."""
_DECODED_TEXTS: Final = 3
"""Texts while there are few of them, beside the column: compressed, as pages, and in a dictionary."""
_GROWN: Final = 3
"""What a buffer that grew was: itself, and all that were too small, whose pages are kept a while."""
_LEVEL_BITS: Final = 32
"""In which list an item of a file is, and how deep."""
_ENCODED_LISTS: Final = 6
"""A row group of lists as it is written: its items and, for each, in which list and how deep it is; all of
it as it comes, in pages, and compressed (measured on lists of 32-bit numbers, whose depths are half of it)."""
_ENCODED_TEXTS: Final = 2
"""A row group of texts as it is written: in a dictionary, and as pages."""
_LONE: Final = 4
"""A frame of one row is a constant to an engine: made a column again as it comes, and as it is used."""

_ENCODED_STATE: Final = 3
"""A state as it is kept, or the part of it that is written: in one piece, as a stream, as the file's bytes."""
_SIFTED: Final = 16 * 2**20
"""A part of a state, as it is read, hashed, and what is taken of it."""
_HASHED: Final = 24

THREAD_BYTES: Final = 16 * 2**20
"""What a thread takes beside its tasks: heaps at its first use, freed pages kept for the next one.

In no task's bytes: it is counted where tasks run, once for each that is in flight. Measured over tasks of 8 to
70 MiB in two threads: 8 to 18 MiB each in a new process (more than 16 in one of them), up to 12 later.
"""
COLUMN_BYTES: Final = 10 * 2**10
"""What reading a column takes whatever its rows: decoder, buffers (measured over 6,000 of them)."""
_FOOTER_BYTES: Final = 4 * 2**10
"""What a file's footer takes for each of its columns, read or not (measured over 10,000); a table's columns are
taken to be in one file."""
_FEW_COLUMNS: Final = 256
"""A footer of so many is among what a thread takes beside its tasks."""


def reading_bytes(
    schema: TableSchema, columns: Mapping[str, int], rows: int, widest_row: int
) -> int:
    """Return the peak of reading columns of a partition, the columns as they stay included.

    Scalars exist twice for a moment: as they come from the file, and as the engine's own. A value that is far
    wider than others exists in the decoder as well.

    Parameters
    ----------
    schema : TableSchema
    columns : mapping of str to int
        Arrow bytes of each.
    rows : int
    widest_row : int
        The most bytes of a row of these columns.
    """
    # Copied where there are several row groups; of a few rows it is the decoders that count.
    copied = sum(
        COLUMN_BYTES if schema[name].is_tensor else max(size, COLUMN_BYTES)
        for name, size in columns.items()
    )
    texts = sum(row_width(schema[name]) is None for name in columns)
    widest = _widest_value(schema, columns, widest_row)
    read = sum(size for name, size in columns.items() if is_text(schema[name].type))
    decoded = _DECODED * widest + min(_TEXT_PAGES, _DECODED_TEXTS * max(0, read - widest))
    decoded += _lists_bytes(schema, columns, rows, widest_row)
    tensors = [size for name, size in columns.items() if schema[name].is_tensor]
    # Of a tensor, the chunk that is being read.
    once = _FOOTER_BYTES * max(0, len(schema.fields) - _FEW_COLUMNS)
    once += min(CHUNK_BYTES, max(tensors, default=0))
    return sum(columns.values()) + copied + VIEW * texts * rows + decoded + once


def _lists_bytes(
    schema: TableSchema, columns: Mapping[str, int], rows: int, widest_row: int
) -> int:
    """Return what decoding lists takes beside them: of one row group, its pages, items and levels as they grow."""
    most = min(2 * ROW_GROUP_BYTES, min(rows, ROW_GROUP_ROWS) * widest_row)
    found = 0
    for name, size in columns.items():
        type_ = schema[name].type
        if pa.types.is_list(type_):
            bits = row_bits(type_.value_type)
            group = min(size, max(most, widest_row)) if widest_row else size
            found = max(found, group + _GROWN * group * (bits + _LEVEL_BITS) // bits)
    return found


def lone_row_bytes(schema: TableSchema, columns: Mapping[str, int], widest_row: int) -> int:
    """Return what a row needs more where it is the only one that a verb is handed (measured)."""
    return _LONE * _widest_value(schema, columns, widest_row)


def _widest_value(schema: TableSchema, columns: Mapping[str, int], widest_row: int) -> int:
    """Return the most bytes that one row has in columns of varying width."""
    varying = [size for name, size in columns.items() if row_width(schema[name]) is None]
    return min(widest_row, sum(varying))


def with_counted(
    schema: TableSchema, columns: Mapping[str, int], time_bytes: int
) -> dict[str, int]:
    """Return what is read: a scalar column comes along where there are tensors only, or nothing."""
    if any(not schema[name].is_tensor for name in columns) or schema.time is None:
        return dict(columns)
    return {**columns, schema.time: time_bytes}


def feature_bytes(transformer: Transformer, schema: TableSchema, extent: Extent) -> int:
    """Return what computing and writing one feature takes beside its inputs."""
    outputs = transformer.output_bytes(schema, extent)
    return (
        learnt_bytes(transformer, schema, extent)
        + _decoding_bytes(transformer, schema, extent)
        + transformer.memory(schema, extent)
        + outputs
        + _writing_bytes(transformer.outputs(schema), outputs, extent.rows)
    )


def learnt_bytes(transformer: Transformer, schema: TableSchema, extent: Extent) -> int:
    """Return what a task holds of states and of another table, however few its own rows are.

    The other table's rows are held as they were read and once more as they are put together; of a few
    rows it is the decoders that count.
    """
    again = extent.source_bytes
    if extent.source_rows and isinstance(transformer, SourceTransformer):
        again = max(again, COLUMN_BYTES * len(transformer.source_inputs(schema)))
    return extent.state_bytes + extent.source_bytes + again


def _decoding_bytes(transformer: Transformer, schema: TableSchema, extent: Extent) -> int:
    """Return what decoding another table's rows takes beside them, as :func:`reading_bytes` says."""
    if not isinstance(transformer, SourceTransformer):
        return 0
    source = schema.source(transformer.source_table)
    names = transformer.source_inputs(schema)
    grows = any(pa.types.is_list(source[name].type) for name in names)
    widest = min(extent.source_widest_row, extent.source_bytes)
    return _DECODED * widest + (extent.source_bytes if grows else 0)


def _writing_bytes(fields: Sequence[Field], outputs: int, rows: int) -> int:
    """Return what writing takes beside the outputs: a row group encoded.

    Numbers are gone to the file column by column, so that half of them are never there encoded (measured
    over 500 columns). Texts as the engine has them beside Arrow's are in what the transformer needs.
    """
    row_group = outputs * min(rows, ROW_GROUP_ROWS) // max(rows, 1)
    if any(pa.types.is_list(one.type) for one in fields):
        return _ENCODED_LISTS * row_group
    if any(row_width(one) is None for one in fields):
        return _ENCODED_TEXTS * row_group
    return row_group if any(one.is_tensor for one in fields) else row_group // 2


def summary_work_bytes(
    transformer: Transformer, schema: TableSchema, extent: Extent, *, cut: bool
) -> int:
    """Return what summarising columns takes beside them, and keeping the result.

    Parameters
    ----------
    cut : bool
        Only some rows are summarised: a copy of them.
    """
    state = transformer.summary_bytes(schema, extent)
    copied = extent.input_bytes if cut else 0
    working = transformer.summarize_memory(schema, extent)
    keeping = keeping_bytes(state, extent.widest_row)
    if transformer.summarizes_in_engine:
        # Which gives back what it worked with seconds later: the result is kept meanwhile.
        return copied + working + keeping
    # What summarising needed is gone when its result is kept.
    return copied + max(working, state + keeping)


def sifting_bytes(rows: int, keys: int) -> int:
    """Return what reading those rows of a state takes that have the keys of so many rows.

    Parameters
    ----------
    rows : int
    keys : int
        Arrow bytes of the columns that their keys are in.
    """
    return _SIFTED + keys + _HASHED * rows


def combine_bytes(earlier: int, later: int) -> int:
    """Return what combining two states takes, both read included, and keeping the result.

    The result is taken to be no larger than both together.

    They are put together, grouped or ordered, and taken anew: measured on counts of distinct texts, 3.3
    to 3.8 times what goes in and comes out for 200,000 and 500,000 of them, up to 8 times for 50,000,
    which are small.
    """
    result = earlier + later
    return _COMBINING * 2 * result + keeping_bytes(result)


def carrying_bytes(carried: int, state: int) -> int:
    """Return what putting a slice's tail behind the one so far takes; ``carried`` bounds both together."""
    return _COMBINING * (2 * carried + state)


def slices_bytes(working: int) -> int:
    """Return what going on from slice to slice keeps of what an engine worked with in the slices before.

    Its threads take pages in turn, and give back what they freed only seconds later (measured over 8 to 25
    slices with a vocabulary of a million words: a quarter of it).
    """
    return working // 4


def keeping_bytes(state: int, widest_row: int = 0) -> int:
    """Return what keeping a state takes beside it: a large one is written part by part, at least a row each.

    Pages that its making gave up come back meanwhile, not before (measured: up to as much as the state).
    """
    return state + _ENCODED_STATE * min(state, max(PART_BYTES, widest_row))
