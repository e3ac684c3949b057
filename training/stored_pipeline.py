"""The fitted pipeline in a run folder: from columns as the table has them to arrays as the model does.

``pipeline.json`` holds the steps, ``states.arrow`` what they learnt, ``schema.json`` the features and
the model's inputs. All three are data: reading them runs nothing. Rows are transformed by the same
code that made the training batches.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from featurestore.dataset.assembly import to_batch
from featurestore.dataset.batch import Batch, DatasetSchema, HostArray, Input
from featurestore.engines.selection import get_engine
from featurestore.errors import CorruptionError, FeatureStoreError, SchemaError
from featurestore.schema import Field, TableSchema, normalise_type
from featurestore.transforms.base import Partition
from featurestore.transforms.pipeline import FittedPipeline

PIPELINE: Final = "pipeline.json"
STATES: Final = "states.arrow"
SCHEMA: Final = "schema.json"


@dataclass(frozen=True, slots=True)
class StoredPipeline:
    """What turns rows of features into a batch.

    Parameters
    ----------
    features : tuple of Field
        The columns the model learnt from, as the table has them; a base margin is the last.
    model_schema : DatasetSchema
        What the model is fed.
    fitted : FittedPipeline
    """

    features: tuple[Field, ...]
    model_schema: DatasetSchema
    fitted: FittedPipeline

    @property
    def columns(self) -> tuple[Field, ...]:
        """The columns rows must have: the features, and key and time where a step reads them."""
        schema, known = self.fitted.schema_in, {one.name for one in self.features}
        read = {name for step in self.fitted.pipeline.reads(schema) for name in step}
        return (
            *self.features,
            *(one for one in schema if one.name in read and one.name not in known),
        )

    def check(self, schema: pa.Schema) -> None:
        """Refuse rows that lack a column.

        Raises
        ------
        SchemaError
        """
        missing = [one.name for one in self.columns if one.name not in schema.names]
        if missing:
            raise SchemaError(
                f"the rows lack columns {missing}; they have columns {schema.names}",
                "compute them with table.compute, or use training.predict, which does",
            )

    def apply(self, table: pa.Table) -> Batch:
        """Return rows with these columns as the arrays the model is fed, without label and the like.

        The base margin, which predictions begin from, is there if the model was trained upon one.

        Raises
        ------
        SchemaError
            If a column's type does not fit the one it was trained on.
        """
        engine = get_engine("polars")
        columns = self.columns
        scalars = {
            one.name: _cast(table.column(one.name), one) for one in columns if not one.is_tensor
        }
        tensors = {
            one.name: _tensor(table.column(one.name), one) for one in columns if one.is_tensor
        }
        if not scalars:
            # A frame without columns has no rows; this one is read by nothing.
            scalars = {"__rows": pa.chunked_array([pa.nulls(table.num_rows, pa.bool_())])}
        frame = engine.from_arrow(pa.table(scalars))
        seen = Partition(frame, self.fitted.schema_in, tensors)
        batch = to_batch(self.fitted.apply(seen, engine), self.model_schema, engine, label=False)
        margin = self.model_schema.base_margin
        return batch if margin is None else replace(batch, base_margin=_margin(table, margin))


def save_pipeline(
    folder: Path,
    fitted: FittedPipeline,
    table: TableSchema,
    features: Sequence[str],
    model_schema: DatasetSchema,
) -> None:
    """Write a run's pipeline into its folder."""
    schema = {
        "features": [table[name].to_json() for name in features],
        "model": model_schema.to_json(),
    }
    for name, content in ((PIPELINE, fitted.to_json()), (SCHEMA, schema)):
        (folder / name).write_text(
            json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8"
        )
    (folder / STATES).write_bytes(fitted.encode_states())


def load_pipeline(folder: Path) -> StoredPipeline:
    """Read a run's pipeline.

    Raises
    ------
    CorruptionError
        If a file is missing or not what :func:`save_pipeline` wrote.
    """
    try:
        schema = json.loads((folder / SCHEMA).read_text("utf-8"))
        return StoredPipeline(
            tuple(Field.from_json(one) for one in schema["features"]),
            DatasetSchema.from_json(schema["model"]),
            FittedPipeline.from_json(
                json.loads((folder / PIPELINE).read_text("utf-8")), (folder / STATES).read_bytes()
            ),
        )
    except FeatureStoreError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptionError(f"the pipeline of run {folder} cannot be read: {error}") from error


def _cast(column: pa.ChunkedArray, field: Field) -> pa.ChunkedArray:
    if column.type == field.type:
        return column
    try:
        if pa.types.is_null(column.type):
            return pa.chunked_array([pa.nulls(len(column), field.type)])
        return column.cast(normalise_type(column.type)).cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, SchemaError) as error:
        raise _wrong_type(column, field) from error


def _tensor(column: pa.ChunkedArray, field: Field) -> Any:
    """Return a column of lists as an array ``[rows, *shape]``."""
    shape = field.shape or ()
    values = column.combine_chunks()
    while isinstance(values, pa.ChunkedArray):
        values = values.chunk(0) if values.num_chunks else pa.array([], column.type)
    try:
        while pa.types.is_nested(values.type):
            values = values.flatten()
        flat = np.asarray(values.cast(field.type))
        return flat.reshape((len(column), *shape))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise _wrong_type(column, field) from error


def _margin(table: pa.Table, margin: Input) -> HostArray:
    column = table.column(margin.name)
    if column.null_count:
        raise SchemaError(
            f"base_margin {margin.name!r} has {column.null_count} nulls, and predictions begin from it",
            "fill them, or leave these rows out",
        )
    if margin.shape:
        values = _tensor(column, Field(margin.name, pa.float32(), margin.shape))
    else:
        values = column.cast(pa.float32()).to_numpy()
    found: HostArray = np.asarray(values)
    return found


def _wrong_type(column: pa.ChunkedArray, field: Field) -> SchemaError:
    shape = "" if field.shape is None else f" of shape {list(field.shape)}"
    return SchemaError(
        f"feature {field.name!r} is {column.type} and was {field.type}{shape} in training",
        "cast the column, or train again",
    )
