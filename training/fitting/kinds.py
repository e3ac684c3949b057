"""The kinds of models a run can train, and the class of each; its framework is imported with it, not before."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Protocol

from featurestore.dataset.batch import HostArray
from featurestore.errors import MissingDependencyError


class Model(Protocol):
    """A trained model: see ``fitting.keras_model`` and ``fitting.xgboost_model``."""

    history: list[dict[str, float]]
    file: str

    def predict(self, batches: Any) -> HostArray: ...

    def save(self, folder: Path) -> None: ...


def model_class(kind: str) -> Any:
    """Return the class that trains and loads models of a kind.

    Raises
    ------
    MissingDependencyError
        If its framework is not installed.
    """
    needed, extra = ("xgboost", "xgboost") if kind == "xgboost" else ("tensorflow", "tensorflow")
    if importlib.util.find_spec(needed) is None:
        raise MissingDependencyError(
            f"a model of kind {kind!r} needs {needed}, which is not installed",
            f"pip install 'featurestore[{extra}]'",
        )
    if kind == "xgboost":
        from training.fitting.xgboost_model import XGBoostModel

        return XGBoostModel
    from training.fitting.keras_model import KerasModel

    return KerasModel
