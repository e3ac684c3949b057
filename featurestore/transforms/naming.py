"""Names of output columns: predictable defaults, which ``prefix``, ``suffix`` and ``rename`` change.

``rename`` maps default names to new ones and wins over ``prefix`` and ``suffix``, which go around the
others. A transformer with one output per input has the inputs' names as defaults, so that a pipeline
step replaces the column.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from featurestore.errors import DefinitionError

Renaming: TypeAlias = "Mapping[str, str] | Sequence[tuple[str, str]] | None"
"""New names by default name; kept as pairs, which compare and hash."""


def normalise_renaming(rename: Renaming) -> tuple[tuple[str, str], ...] | None:
    """Return a renaming as it is kept in a definition: pairs in the order of the old names.

    Raises
    ------
    DefinitionError
        If it is not a mapping of names to names.
    """
    if rename is None:
        return None
    pairs: list[Any] = list(rename.items() if isinstance(rename, Mapping) else rename)
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(name, str) and name for name in pair):
            raise DefinitionError(f"rename={rename!r} does not map names to names", "give a dict")
    return tuple(sorted((old, new) for old, new in pairs))


def output_names(
    defaults: Sequence[str], prefix: str | None, rename: Renaming, kind: str, suffix: str = ""
) -> tuple[str, ...]:
    """Return the names of a transformer's outputs.

    Parameters
    ----------
    defaults : sequence of str
    prefix : str, optional
    rename : mapping or pairs, optional
    kind : str
        The transformer, for messages.
    suffix : str

    Raises
    ------
    DefinitionError
        If ``rename`` has a name that is no default, or two outputs get one name.

    Examples
    --------
    >>> output_names(["temp", "wind"], "origin_", {"wind": "gust"}, "AsOfJoin")
    ('origin_temp', 'gust')
    """
    new = dict(rename or ())
    unknown = sorted(set(new) - set(defaults))
    if unknown:
        raise DefinitionError(
            f"{kind} renames {unknown}, which it does not produce",
            f"its outputs are {list(defaults)}",
        )
    names = tuple(new.get(name, f"{prefix or ''}{name}{suffix}") for name in defaults)
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DefinitionError(
            f"{kind} would produce {twice} more than once", "rename one of them with rename={...}"
        )
    return names
