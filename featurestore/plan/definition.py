"""A feature's definition: a transformer and, for a fitted one, the rows it is learnt from."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

from featurestore.arguments import as_whole
from featurestore.errors import (
    CorruptionError,
    DefinitionError,
    FormatError,
    InvalidInputError,
)
from featurestore.fingerprint import Json, fingerprint
from featurestore.schema import Field, TableSchema
from featurestore.storage.records import GroupEntry
from featurestore.transforms.base import (
    Scope,
    SourceTransformer,
    Transformer,
    UnknownTransformer,
    transformer_from_spec,
)
from featurestore.transforms.selectors import Selector, resolve


@dataclass(frozen=True, slots=True)
class FeatureDefinition:
    """What a stored feature is.

    Parameters
    ----------
    transformer : Transformer
    fit_on : ``"all"`` or (start, stop), optional
        For scope ``fit``: all rows of the table, or those with ``start <= time < stop`` (ISO 8601
        text, or integers for an integer time). There is no default: a statistic over rows that a
        model is later validated on is a leak.
    asked : str
        Fingerprint of the definition as it was given, where that had selectors: stored values are
        of the columns it selected then, whatever columns come later. ``""`` if it had none.
    """

    transformer: Transformer
    fit_on: str | tuple[str | int, str | int] | None = None
    asked: str = ""

    def __post_init__(self) -> None:
        fitted = self.transformer.scope is Scope.FIT
        kind = type(self.transformer).__name__
        if fitted and self.fit_on is None:
            raise DefinitionError(
                f"{kind} learns from rows, and fit_on= does not say from which",
                "pass fit_on=('2013-01-01', '2013-10-01') or fit_on='all', or put it into the "
                "pipeline of a dataset, where it learns from the training part",
            )
        if not fitted and self.fit_on is not None:
            raise DefinitionError(
                f"fit_on={self.fit_on!r} was given for {kind}, which has scope "
                f"{self.transformer.scope} and learns nothing",
                "leave fit_on out",
            )
        if isinstance(self.fit_on, str) and self.fit_on != "all":
            raise DefinitionError(f"fit_on={self.fit_on!r} is not known", "use 'all' or a range")
        if isinstance(self.fit_on, Sequence) and not isinstance(self.fit_on, str):
            if len(self.fit_on) != 2:
                raise DefinitionError(f"fit_on={self.fit_on!r} is not (start, stop)")
            start, stop = (
                str(one) if (whole := as_whole(one)) is None else whole for one in self.fit_on
            )
            object.__setattr__(self, "fit_on", (start, stop))

    def to_json(self) -> dict[str, Json]:
        fit_on = list(self.fit_on) if isinstance(self.fit_on, tuple) else self.fit_on
        asked = {"asked": self.asked} if self.asked else {}
        return {"transformer": self.transformer.spec(), "fit_on": fit_on, **asked}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FeatureDefinition:
        fit_on = value["fit_on"]
        return cls(
            transformer_from_spec(value["transformer"]),
            tuple(fit_on) if isinstance(fit_on, list) else fit_on,
            value.get("asked", ""),
        )

    @property
    def kind(self) -> str:
        """The kind of its transformer, also of one that is not known here."""
        if isinstance(self.transformer, UnknownTransformer):
            return str(self.transformer.stored.get("kind"))
        return type(self.transformer).__name__

    @property
    def source_table(self) -> str | None:
        """The other table that it reads."""
        transformer = self.transformer
        return transformer.source_table if isinstance(transformer, SourceTransformer) else None

    @property
    def fingerprint(self) -> str:
        fit_on = list(self.fit_on) if isinstance(self.fit_on, tuple) else self.fit_on
        return fingerprint("feature", self.transformer.fingerprint(), fit_on)

    def is_what_was_asked(self, given: str) -> bool:
        """Whether a definition of this fingerprint, which may have selectors, is the one this was made of."""
        return given in (self.asked, self.fingerprint)

    def with_names(self, schema: TableSchema) -> FeatureDefinition:
        """Return the definition with its selectors replaced by the columns they select now."""
        transformer = self.transformer
        seen = schema
        if isinstance(transformer, SourceTransformer):
            seen = schema.source(transformer.source_table)
        values = {one.name: getattr(transformer, one.name) for one in fields(transformer)}
        if not any(isinstance(value, Selector) for value in values.values()):
            return self
        named = object.__new__(type(transformer))
        for name, value in values.items():
            fixed = resolve(value, seen) if isinstance(value, Selector) else value
            object.__setattr__(named, name, fixed)
        return FeatureDefinition(named, self.fit_on, self.asked or self.fingerprint)


MALFORMED: Final = (
    AttributeError,
    IndexError,
    InvalidInputError,
    KeyError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What JSON that is no definition raises while one is made of it."""


def parsed(stored: Mapping[str, Any]) -> FeatureDefinition:
    """Return a stored definition; one that this process does not know stands for itself.

    Its values can be read all the same: see ``UnknownTransformer``.
    """
    try:
        return FeatureDefinition.from_json(stored)
    except FormatError as error:
        return FeatureDefinition(UnknownTransformer(stored["transformer"], error))
    except MALFORMED as error:
        raise CorruptionError(
            f"a stored definition is damaged: {error!r}", "drop the feature and define it again"
        ) from error


@dataclass(frozen=True, slots=True, eq=False)
class StoredDefinition:
    """A definition that is in a store: what its entry says of it at once, the rest when asked for.

    Parameters
    ----------
    entry : GroupEntry
    read : callable
        Returns the definition as JSON.
    """

    entry: GroupEntry
    read: Callable[[], Mapping[str, Any]]
    _parsed: list[FeatureDefinition] = field(default_factory=list, init=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        definition = self.parsed()  # another process may not see the store
        return FeatureDefinition, (definition.transformer, definition.fit_on, definition.asked)

    def parsed(self) -> FeatureDefinition:
        """Return the definition; it is read once."""
        if not self._parsed:
            self._parsed.append(parsed(self.read()))
        return self._parsed[0]

    @property
    def kind(self) -> str:
        return self.entry.kind

    @property
    def source_table(self) -> str | None:
        if self.entry.definition is not None:  # of format 1: its entry does not say
            return self.parsed().source_table
        return next(iter(self.entry.reads), None)

    def is_what_was_asked(self, given: str) -> bool:
        """Compare with a definition by its fingerprint; see ``FeatureDefinition``."""
        return given in (self.entry.asked, self.entry.definition_fingerprint)


@dataclass(frozen=True, slots=True, eq=False)
class Feature:
    """A definition bound to a table: its column group, inputs and outputs.

    Parameters
    ----------
    group : str
        Name of the column group that holds its values.
    stated : FeatureDefinition or StoredDefinition
        ``definition`` is the same, read if need be.
    inputs : tuple of str
        Columns of its own table that it reads, to learn or to apply.
    outputs : tuple of Field
    """

    group: str
    stated: FeatureDefinition | StoredDefinition
    inputs: tuple[str, ...]
    outputs: tuple[Field, ...]

    @property
    def definition(self) -> FeatureDefinition:
        stated = self.stated
        return stated.parsed() if isinstance(stated, StoredDefinition) else stated

    @property
    def transformer(self) -> Transformer:
        return self.definition.transformer

    @property
    def kind(self) -> str:
        """The kind of its transformer; reads nothing."""
        return self.stated.kind

    @property
    def source_table(self) -> str | None:
        """The other table that it reads; reads nothing."""
        return self.stated.source_table

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.outputs)


def bind(definition: FeatureDefinition, schema: TableSchema) -> Feature:
    """Return the feature that a definition makes of a table with this schema.

    Raises
    ------
    SchemaError
        If its inputs are not there.
    DefinitionError
        If it reads the future, gives no column or twice the same.
    """
    transformer = definition.transformer
    inputs = tuple(dict.fromkeys((*transformer.inputs(schema), *transformer.learns_from(schema))))
    outputs = transformer.outputs(schema)
    names = [one.name for one in outputs]
    if not names or len(set(names)) != len(names):
        raise DefinitionError(
            f"{type(transformer).__name__} gives the columns {names}", "name each output once"
        )
    return Feature(group_name(outputs, definition.fingerprint), definition, inputs, outputs)


def group_name(outputs: Sequence[Field], definition_fingerprint: str) -> str:
    """Return a path-safe, unique name for a column group: its first column and its definition."""
    slug = re.sub(r"[^A-Za-z0-9_]+", "_", outputs[0].name)[:40]
    return f"f_{slug}-{definition_fingerprint[:8]}"
