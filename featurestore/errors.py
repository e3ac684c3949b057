"""The one error tree, grouped by what the caller can do about it.

Every message gives the value seen, the limit it met and the remedy. The remedy is a field of its
own, so that a command line or a notebook can set it apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


class FeatureStoreError(Exception):
    """Root of every error this package raises on purpose.

    Parameters
    ----------
    problem : str
        What was seen and which limit or rule it met.
    remedy : str, optional
        What the caller can do now.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}\n  Remedy: {self.remedy}" if self.remedy else self.problem


# --- The data or the arguments are wrong: change them -------------------------------------------


class InvalidInputError(FeatureStoreError):
    """An argument or a row is not acceptable; nothing was changed."""


class SchemaError(InvalidInputError):
    """Columns are missing, unexpected, or of the wrong type."""


class MissingColumnError(SchemaError):
    """A column that something needs does not exist.

    Parameters
    ----------
    column : str
    columns : sequence of str
        Those that exist.
    """

    def __init__(self, column: str, columns: Sequence[str]) -> None:
        close = get_close_matches(str(column), columns, n=3)
        known = f"did you mean {close}?" if close else f"columns are {list(columns)[:50]}"
        super().__init__(f"there is no column {column!r}", known)
        self.column = column
        self.columns = tuple(columns)

    def __reduce__(self) -> tuple[type, tuple[str, tuple[str, ...]]]:
        return type(self), (self.column, self.columns)


class SourceError(InvalidInputError):
    """A source file or stream cannot be read, or holds no rows."""


class ExpectationError(InvalidInputError):
    """Values are not what their table's expectations say; nothing was published."""


class DuplicateRowsError(InvalidInputError):
    """Rows share key and time although the table does not allow it."""


class LateRowsError(InvalidInputError):
    """Appended rows are not newer than the newest partition."""


class DefinitionError(InvalidInputError):
    """A transformer, split or dataset is not well defined for this table."""


class NotPartitionIndependentError(DefinitionError):
    """A definition whose values would change with the partitioning."""


class DependencyCycleError(DefinitionError):
    """Features that need each other."""


class NameTakenError(InvalidInputError):
    """A table, feature or tag of this name exists."""


class NotFoundError(InvalidInputError):
    """No store, table, feature, column, version or tag of this name."""


# --- Values are not there yet: build them ---------------------------------------------------------


class NotReadyError(FeatureStoreError):
    """Values are missing or stale; ``build`` mends it."""


# --- Somebody else was faster: try again ------------------------------------------------------------


class ConflictError(FeatureStoreError):
    """A concurrent commit changed what this operation relied on."""


# --- A limit is too small: raise it or ask for less ---------------------------------------------------


class LimitError(FeatureStoreError):
    """The work does not fit a limit."""


class MemoryLimitError(LimitError):
    """The projected peak exceeds ``memory_limit``; what does not fit was not begun."""


class MemoryProjectionWarning(UserWarning):
    """A step took more memory than was projected for it."""


class ExpectationWarning(UserWarning):
    """Values were published that are not what their table's expectations say."""


class EnforcementWarning(UserWarning):
    """The kernel does not keep a memory limit that it was to keep."""


class DiskFullError(LimitError):
    """The disk is full; what was published before is untouched."""


# --- The store is damaged: verify and repair ------------------------------------------------------------


class CorruptionError(FeatureStoreError):
    """Bytes on disk are not those that were written."""


class FormatError(FeatureStoreError):
    """Written by a newer version of the format, or not a store."""


# --- This cannot be done here -----------------------------------------------------------------------------


class UnsupportedError(FeatureStoreError):
    """An engine, backend or platform has a declared gap."""


class MissingDependencyError(UnsupportedError):
    """An optional package is needed and not installed."""
