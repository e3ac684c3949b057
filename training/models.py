"""The built-in network for tables: numbers as they are, categories embedded, then dense layers.

Expects inputs as a dataset gives them after a pipeline: standardized numbers without NaN, codes in
``[0, cardinality)``. Keras is imported when a model is built, not before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from featurestore.dataset.batch import NUMERIC, DatasetSchema, Role
from featurestore.errors import DefinitionError, InvalidInputError
from training.metrics import NETWORK_TASKS


def embedding_width(cardinality: int) -> int:
    """Return how many numbers a category becomes: ``min(50, round(1.6 * n ** 0.56))``.

    The rule of fast.ai's tabular learner.

    Examples
    --------
    >>> embedding_width(2), embedding_width(1000), embedding_width(10**6)
    (2, 50, 50)
    """
    return max(1, min(50, round(1.6 * math.pow(cardinality, 0.56))))


def tabular(
    schema: DatasetSchema,
    task: str = "binary",
    *,
    classes: int | None = None,
    hidden: Sequence[int] = (256, 64),
    dropout: float = 0.0,
    batch_norm: bool = False,
    seed: int = 0,
) -> Any:
    """Return an uncompiled ``keras.Model`` whose inputs carry the names of the dataset's arrays.

    Parameters
    ----------
    schema : DatasetSchema
    task : {"binary", "regression", "multiclass"}
        Sigmoid, linear or softmax output.
    classes : int, optional
        For multiclass.
    hidden : sequence of int
        Units of the dense layers.
    dropout : float
        After each of them, in [0, 1).
    batch_norm : bool
        Normalise before each of them.
    seed : int
        Of weights and dropout.

    Returns
    -------
    keras.Model

    Raises
    ------
    InvalidInputError, DefinitionError
    """
    from training.hooks.keras import keras

    _check(schema, task, classes, hidden, dropout)
    inputs, parts = {}, []
    for name, (dtype, shape) in schema.array_specs().items():
        inputs[name] = keras.Input(shape=shape, dtype=dtype, name=name)
    for name, value in inputs.items():
        if name == NUMERIC:
            parts.append(value)
    for number, one in enumerate(schema.columns):
        if one.role is Role.CATEGORICAL:
            size = one.cardinality or 1
            embed = keras.layers.Embedding(
                size,
                embedding_width(size),
                embeddings_initializer=keras.initializers.RandomUniform(
                    -0.05, 0.05, seed=seed + 1000 + number
                ),
                name=f"embed_{number}",
            )
            parts.append(embed(inputs[one.name]))
        elif one.role is Role.TENSOR:
            floats = keras.layers.Rescaling(1.0, dtype="float32")(inputs[one.name])
            flat = floats if len(one.shape) == 1 else keras.layers.Flatten()(floats)
            parts.append(flat)
    x = parts[0] if len(parts) == 1 else keras.layers.Concatenate()(parts)
    for number, units in enumerate(hidden):
        if batch_norm:
            x = keras.layers.BatchNormalization()(x)
        initializer = keras.initializers.HeNormal(seed=seed + number)
        x = keras.layers.Dense(units, activation="relu", kernel_initializer=initializer)(x)
        if dropout:
            x = keras.layers.Dropout(dropout, seed=seed + number)(x)
    outputs, activation = _head(task, classes)
    initializer = keras.initializers.GlorotUniform(seed=seed + len(hidden))
    last = keras.layers.Dense(
        outputs,
        activation=activation,
        kernel_initializer=initializer,
        dtype="float32",
        name="output",
    )
    return keras.Model(inputs, last(x), name="tabular")


def loss_of(task: str) -> str:
    """Return the Keras loss that goes with a task."""
    return {
        "binary": "binary_crossentropy",
        "regression": "mean_squared_error",
        "multiclass": "sparse_categorical_crossentropy",
    }[task]


def _head(task: str, classes: int | None) -> tuple[int, str]:
    if task == "multiclass":
        return classes or 0, "softmax"
    return 1, "sigmoid" if task == "binary" else "linear"


def _check(
    schema: DatasetSchema, task: str, classes: int | None, hidden: Sequence[int], dropout: float
) -> None:
    if task not in NETWORK_TASKS:
        raise InvalidInputError(f"there is no task {task!r}", f"use one of {list(NETWORK_TASKS)}")
    if task == "multiclass" and (classes is None or classes < 2):
        raise InvalidInputError(
            f"a multiclass model needs classes >= 2, not {classes!r}", "set classes to their count"
        )
    if any(isinstance(units, bool) or units < 1 for units in hidden):
        raise InvalidInputError(f"hidden={list(hidden)!r} must be numbers of units >= 1")
    if not 0 <= dropout < 1:
        raise InvalidInputError(f"dropout={dropout!r} is not in [0, 1)")
    if schema.ragged:
        raise DefinitionError(
            f"feature {schema.ragged[0].name!r} has lists of any length, which this model does not take",
            "make them one length with fs.ListPad, or give a model of your own",
        )
    if not schema.array_specs():
        raise DefinitionError("a dataset without features cannot train a model")
