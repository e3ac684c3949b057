"""What a model is told beside its features: labels, weights, queries of a ranking, base margins.

None of them is a feature: selectors leave them out, and no pipeline sees or changes them. Only a column
that says which query a row belongs to may be part of the table's key or its time, which pipelines may
read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from featurestore.dataset.batch import Input, Role
from featurestore.errors import DefinitionError
from featurestore.schema import Field, TableSchema


@dataclass(frozen=True, slots=True)
class Targets:
    """The columns of a dataset that are not features.

    Parameters
    ----------
    labels : tuple of str
    weight : str, optional
        How much each row counts: a number, 0 or more.
    group : str, optional
        The query that each row belongs to: an integer, a date or a time.
    base_margin : str, optional
        What a model's raw prediction begins from: a number, or a tensor of one for each class.

    Examples
    --------
    >>> Targets(("y",), group="day").names
    ('y', 'day')
    """

    labels: tuple[str, ...] = ()
    weight: str | None = None
    group: str | None = None
    base_margin: str | None = None

    @property
    def roles(self) -> dict[str, Role]:
        """The role of each column, in the order in which a dataset has them."""
        found = dict.fromkeys(self.labels, Role.LABEL)
        for name, role in (
            (self.weight, Role.WEIGHT),
            (self.group, Role.GROUP),
            (self.base_margin, Role.BASE_MARGIN),
        ):
            if name is not None:
                found[name] = role
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """All of them: labels, weight, group, base margin."""
        return tuple(self.roles)

    def hidden(self, schema: TableSchema) -> set[str]:
        """Return those that a pipeline does not see: all but a group that is key or time."""
        identity = {*schema.key, schema.time}
        return {one for one in self.names if one != self.group or one not in identity}

    def inputs(self, schema: TableSchema) -> tuple[Input, ...]:
        """Return how a model sees them.

        Raises
        ------
        DefinitionError
            If one is of a type that its role does not allow.
        """
        return tuple(_input(schema[name], role) for name, role in self.roles.items())


def resolve_targets(
    schema: TableSchema,
    label: object,
    weight: str | None = None,
    group: str | None = None,
    base_margin: str | None = None,
) -> Targets:
    """Return the targets that names say; ``label`` is ``None``, a name, or a sequence of names.

    Raises
    ------
    SchemaError
        If a column does not exist.
    DefinitionError
        If one is named twice.
    """
    given = [label] if isinstance(label, str) else [] if label is None else label
    if not isinstance(given, Sequence) or not all(isinstance(one, str) for one in given):
        raise DefinitionError(
            f"label={label!r} does not name labels", "give a name, or a list of names"
        )
    others = {"weight": weight, "group": group, "base_margin": base_margin}
    named = {role: name for role, name in others.items() if name is not None}
    told = [*given, *named.values()]
    for name in told:
        schema[name]  # raises if there is none
    if len(set(told)) != len(told):
        said = "".join(f" and {role}={name!r}" for role, name in named.items())
        raise DefinitionError(f"label={label!r}{said} name a column twice", "name each once")
    return Targets(tuple(given), weight, group, base_margin)


def numpy_name(type_: pa.DataType) -> str:
    """Return the NumPy name of a type of numbers."""
    return str(np.dtype(type_.to_pandas_dtype()).name)


def _input(one: Field, role: Role) -> Input:
    if role is Role.LABEL:
        return _label(one)
    if role is Role.GROUP:
        return _group(one)
    margin = role is Role.BASE_MARGIN
    vector = margin and one.is_tensor and len(one.shape or ()) == 1 and _is_number(one.type)
    if not (one.is_numeric or vector):
        allowed = "a number, or a tensor of one for each class" if margin else "a number, 0 or more"
        shape = f" and shape {list(one.shape)}" if one.shape else ""
        raise DefinitionError(
            f"{role} {one.name!r} is of type {one.type}{shape}; a {role} is {allowed}",
            "make a numeric one with fs.Expression",
        )
    return Input(one.name, role, "float32", one.shape or ())


def _is_number(type_: pa.DataType) -> bool:
    return bool(pa.types.is_floating(type_) or pa.types.is_integer(type_))


def _label(one: Field) -> Input:
    if not one.is_numeric:
        what = f"a tensor of shape {one.shape}" if one.is_tensor else f"of type {one.type}"
        raise DefinitionError(
            f"label {one.name!r} is {what}; a label is a number or a boolean",
            f"make a numeric one, like fs.Expression(target=nw.col({one.name!r}) == 'yes')"
            if one.is_string
            else "make a numeric one with fs.Expression",
        )
    return Input(one.name, Role.LABEL, _label_dtype(one.type))


def _label_dtype(type_: pa.DataType) -> str:
    if pa.types.is_boolean(type_):
        return "uint8"
    return "float64" if pa.types.is_decimal(type_) else numpy_name(type_)


def _group(one: Field) -> Input:
    if not one.is_tensor and pa.types.is_integer(one.type):
        return Input(one.name, Role.GROUP, numpy_name(one.type))
    if not one.is_tensor and pa.types.is_temporal(one.type):
        return Input(one.name, Role.GROUP, "int64")
    raise DefinitionError(
        f"group {one.name!r} is of type {one.type}; a group is an integer, a date or a time",
        f"store codes with table.add(fs.Categorify({one.name!r}), fit_on='all') and name their column"
        if one.is_string
        else "make an integer with fs.Expression",
    )
