"""What an engine must do: move columns between frames, arrays and Arrow, and number groups.

Everything else is a Narwhals expression or an array kernel of this package. Arrays are those of
``engine.xp`` (``numpy`` or ``cupy``); frames are eager Narwhals frames over the engine's library.

Conventions of all kernels: a null is ``valid == False`` with an unspecified value under it; NaN is
a value, not a null; rows keep the order they have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import narwhals as nw
import numpy as np
import pyarrow as pa

from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import PartitionEntry, StoredFile

Array: TypeAlias = Any
"""A NumPy or CuPy array."""

Frame: TypeAlias = "nw.DataFrame[Any]"
"""An eager Narwhals frame over the engine's library."""

Series: TypeAlias = "nw.Series[Any]"


class Engine(Protocol):
    """A dataframe library and the array module that goes with it."""

    @property
    def name(self) -> str:
        """``"polars"`` or ``"cudf"``."""

    @property
    def xp(self) -> Any:
        """The array module: ``numpy`` or ``cupy``."""

    def read_parquet(
        self,
        store: ObjectStore,
        files: Sequence[StoredFile],
        columns: Sequence[str],
        entry: PartitionEntry | None = None,
        rows: tuple[int, int] | None = None,
    ) -> Frame:
        """Return columns of a partition's Parquet files, in the order asked for.

        Given the partition's ``entry``, files that claim other sizes are refused before they are
        decoded. Given ``rows``, only the rows ``start <= row < stop`` are returned, and only the row
        groups that hold them are read.

        Raises
        ------
        CorruptionError
            If a file is missing, has another size, or a page fails its checksum.
        """

    def from_arrow(self, table: pa.Table) -> Frame:
        """Return a frame of the table's columns."""

    def to_arrow(self, frame: Frame) -> pa.Table:
        """Return the frame as Arrow, its types normalised (``schema.normalise_type``)."""

    def values(self, column: Series) -> tuple[Array, Array]:
        """Return a column's values and which of them are valid.

        Booleans come as ``bool``, numbers in their own dtype, timestamps and dates as ``int64``
        steps of ``schema.time_unit``; decimals as ``float64``. Values under nulls are 0.

        Raises
        ------
        UnsupportedError
            For strings and lists.
        """

    def column(self, name: str, values: Array, valid: Array | None, type_: pa.DataType) -> Series:
        """Return a column of Arrow type ``type_`` from an array: the inverse of ``values``."""

    def codes(self, frame: Frame, columns: Sequence[str]) -> Array:
        """Return an ``int64`` per row that is equal exactly where these columns are equal.

        Codes lie in ``[0, rows)`` and are otherwise arbitrary. Nulls equal each other, NaN equals
        NaN, ``-0.0`` equals ``0.0``. No columns: all zero.
        """

    def find(self, frame: Frame, columns: Sequence[str], known: Frame) -> Array:
        """Return where the values of each row are in ``known``: ``int32 [rows]``, -1 for nowhere.

        ``known`` has the same columns; its rows differ from each other and have no nulls. What equals
        what is as in ``codes``; a row with a null is nowhere.
        """

    def take(self, frame: Frame, positions: Array, valid: Array | None = None) -> Frame:
        """Return rows by position; where ``valid`` is False a row of nulls."""

    def strings(self, column: Series) -> tuple[Array, Array, Array]:
        """Return a string column's UTF-8: ``int64`` offsets ``[n + 1]``, ``uint8`` bytes, validity."""

    def native(self, frame: Frame, kind: str) -> Any:
        """Return the frame for a user's function: ``"narwhals"``, ``"pandas"`` or ``"polars"``.

        ``"pandas"`` gives pandas on a CPU and cuDF on a GPU.

        Raises
        ------
        UnsupportedError
            ``"polars"`` on a GPU.
        """

    def from_native(self, value: Any) -> Frame:
        """Return what a user's function gave back (frame or series) as this engine's frame."""

    def to_host(self, array: Array) -> np.ndarray[Any, Any]:
        """Return an array in this machine's memory."""

    def from_host(self, array: np.ndarray[Any, Any]) -> Array:
        """Return an array where the engine computes."""
