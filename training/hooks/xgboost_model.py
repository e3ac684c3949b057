"""Training, saving and loading an XGBoost model for a run, from external memory."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from featurestore.dataset.batch import Batch, DatasetSchema, HostArray
from featurestore.errors import CorruptionError, InvalidInputError
from featurestore.execution.events import FRAMEWORK, step
from training.config import RunConfig
from training.hooks.xgboost import dmatrix, predict_batches, xgboost

if TYPE_CHECKING:
    from training.loading.loader import Loader

FILE: Final = "model.ubj"
_OBJECTIVES: Final = {
    "binary": ("binary:logistic", "logloss"),
    "regression": ("reg:squarederror", "rmse"),
    "multiclass": ("multi:softprob", "mlogloss"),
}


class XGBoostModel:
    """A Booster with the history of its training."""

    file = FILE

    def __init__(
        self, booster: Any, schema: DatasetSchema, history: Sequence[dict[str, float]] = ()
    ) -> None:
        self.booster = booster
        self._schema = schema
        self.history = list(history)

    @classmethod
    def fit(cls, config: RunConfig, task: str, train: Loader, valid: Loader) -> XGBoostModel:
        """Train ``epochs`` rounds with ``tree_method="hist"``; ``params`` go to XGBoost as they are.

        Raises
        ------
        InvalidInputError
            With XGBoost's own words, if it refuses the parameters or the data.
        """
        settings = config.train
        params = _params(config, task)
        _require_known(params)
        limit = train.memory_limit
        with step("quantise pages", 2, memory_limit=limit, kind=FRAMEWORK) as advance:
            training = dmatrix(train, max_bin=params["max_bin"])
            advance(1)
            validation = dmatrix(valid, training, max_bin=params["max_bin"])
        results: dict[str, dict[str, list[float]]] = {}
        with step("boost (rounds)", settings.epochs, kind=FRAMEWORK) as advance:
            try:
                booster = xgboost.train(
                    params,
                    training,
                    settings.epochs,
                    evals=[(training, "train"), (validation, "valid")],
                    evals_result=results,
                    early_stopping_rounds=settings.early_stopping or None,
                    callbacks=[_Progress(advance)],
                    verbose_eval=False,
                )
            except xgboost.core.XGBoostError as error:
                raise InvalidInputError(
                    f"XGBoost refused: {str(error).splitlines()[0]}",
                    "check [model.params] and the label",
                ) from error
        if settings.early_stopping:
            booster = booster[: booster.best_iteration + 1]
        # A trained Booster keeps its matrices and their cache files alive; a loaded one does not.
        return cls(_from_bytes(booster.save_raw("ubj")), train.schema, _history(results))

    def predict(self, batches: Iterable[Batch]) -> HostArray:
        """Return predictions for batches in their order: ``[rows]``, or ``[rows, classes]``."""
        return predict_batches(self.booster, (one for one in batches if one.rows), self._schema)

    def save(self, folder: Path) -> None:
        self.booster.save_model(folder / FILE)

    @classmethod
    def load(cls, folder: Path, schema: DatasetSchema) -> XGBoostModel:
        """Load a saved model (UBJSON; holds no code).

        Raises
        ------
        CorruptionError
        """
        try:
            return cls(_from_bytes(bytearray((folder / FILE).read_bytes())), schema)
        except (OSError, xgboost.core.XGBoostError) as error:
            raise CorruptionError(f"the model {folder / FILE} cannot be loaded: {error}") from error


def _params(config: RunConfig, task: str) -> dict[str, Any]:
    objective, metric = _OBJECTIVES[task]
    params: dict[str, Any] = {
        "objective": objective,
        "eval_metric": metric,
        "tree_method": "hist",
        "grow_policy": "depthwise",
        "max_bin": 256,
        "seed": config.train.seed % 2**31,
    }
    if config.model.classes is not None:
        params["num_class"] = config.model.classes
    if config.train.learning_rate is not None:
        params["learning_rate"] = config.train.learning_rate
    return {**params, **config.model.params}


def _require_known(params: dict[str, Any]) -> None:
    """Refuse parameters that XGBoost would pass over with a warning: a misspelt one, say.

    One round on two rows asks XGBoost itself; what it refuses outright is left to the training.
    """
    two_rows = xgboost.DMatrix([[0.0], [1.0]], label=[0, 1])
    with warnings.catch_warnings(record=True) as caught, suppress(xgboost.core.XGBoostError):
        warnings.simplefilter("always")
        xgboost.train(params, two_rows, 1)
    for one in caught:
        unused = re.search(r"Parameters: \{(.*?)\} are not used", str(one.message), re.DOTALL)
        if unused:
            raise InvalidInputError(
                f"[model] params has {unused[1].strip()}, which XGBoost does not use here",
                "look for a misspelling, or leave it out",
            )


def _history(results: dict[str, dict[str, list[float]]]) -> list[dict[str, float]]:
    """Return one entry a round: the last metric of each matrix is the loss, as XGBoost stops on it."""
    train = list(results["train"].values())[-1]
    valid = list(results["valid"].values())[-1]
    return [
        {"epoch": float(number), "loss": float(a), "val_loss": float(b)}
        for number, (a, b) in enumerate(zip(train, valid, strict=True))
    ]


def _from_bytes(data: bytearray) -> Any:
    booster = xgboost.Booster()
    booster.load_model(data)
    return booster


class _Progress(xgboost.callback.TrainingCallback):  # type: ignore[misc]
    """Tells the observers how many rounds are done."""

    def __init__(self, advance: Any) -> None:
        super().__init__()
        self._advance = advance

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        self._advance(epoch + 1)
        return False
