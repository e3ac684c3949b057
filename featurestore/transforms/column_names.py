"""Names of the outputs of transformers that make one output per input column.

By default an output has its input's name, so that a pipeline step replaces the column. ``prefix``
and ``suffix`` are put around the name; ``rename`` gives single names and wins over both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from featurestore.errors import DefinitionError


def output_names(
    columns: Sequence[str], prefix: str, suffix: str, rename: Mapping[str, str]
) -> dict[str, str]:
    """Return ``{input: output}``.

    Raises
    ------
    DefinitionError
        If ``rename`` names a column that is not selected, or two outputs share a name.

    Examples
    --------
    >>> output_names(["a", "b"], "", "_std", {"b": "beta"})
    {'a': 'a_std', 'b': 'beta'}
    """
    unknown = sorted(set(rename) - set(columns))
    if unknown:
        raise DefinitionError(
            f"rename names {unknown}, which are not selected", f"selected are {list(columns)}"
        )
    names = {name: rename.get(name, f"{prefix}{name}{suffix}") for name in columns}
    taken: dict[str, str] = {}
    for name, output in names.items():
        if output in taken:
            raise DefinitionError(
                f"columns {taken[output]!r} and {name!r} would both become {output!r}",
                "choose another name in rename",
            )
        taken[output] = name
    return names


def normalise_rename(
    rename: Mapping[str, str] | Sequence[Sequence[str]],
) -> tuple[tuple[str, str], ...]:
    """Return a renaming as sorted pairs, the form in which a definition keeps it.

    Raises
    ------
    DefinitionError
        If it is not a mapping from names to names.
    """
    pairs = tuple(rename.items()) if isinstance(rename, Mapping) else tuple(map(tuple, rename))
    if not all(len(one) == 2 and all(isinstance(name, str) for name in one) for one in pairs):
        raise DefinitionError(f"{rename!r} does not rename columns", "give {'old': 'new'}")
    return tuple(sorted((str(old), str(new)) for old, new in pairs))
