"""Training, saving and loading an XGBoost model for a run, from external memory."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from featurestore.arguments import as_whole, shown
from featurestore.dataset.batch import Batch, DatasetSchema, HostArray
from featurestore.errors import CorruptionError, InvalidInputError
from featurestore.execution.events import FRAMEWORK, step
from featurestore.fingerprint import digest
from featurestore.limits import resident_bytes
from featurestore.units import format_bytes
from training.checkpoints import Checkpoints, damaged, read_state, write_state
from training.config import RunConfig
from training.history import best_epoch, waited_enough
from training.hooks.xgboost import dmatrix, predict_batches, xgboost
from training.interrupts import Interrupts

if TYPE_CHECKING:
    from training.loading.loader import Loader
    from training.unfinished import Unfinished

FILE: Final = "model.ubj"
_EVERY_SECONDS: Final = 10.0
_OBJECTIVES: Final = {
    "binary": ("binary:logistic", "logloss"),
    "regression": ("reg:squarederror", "rmse"),
    "multiclass": ("multi:softprob", "mlogloss"),
    "ranking": ("rank:ndcg", "ndcg"),
}
_HIGHER_IS_BETTER: Final = ("auc", "aucpr", "map", "ndcg", "pre")


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
    def fit(
        cls, config: RunConfig, task: str, train: Loader, valid: Loader, work: Unfinished, say: Any
    ) -> XGBoostModel:
        """Train ``epochs`` rounds with ``tree_method="hist"``; ``params`` go to XGBoost as they are.

        A run that goes on gets the trees of an undisturbed one, unless rows or columns are drawn at random
        (``subsample``, ``colsample_*``): XGBoost does not save its generators.

        Raises
        ------
        InvalidInputError
            With XGBoost's own words, if it refuses the parameters or the data.
        """
        settings = config.train
        params = _params(config, task)
        _require_known(params)
        rounds = _Rounds(config, work, say)
        if rounds.saved is not None and (rounds.stopped or len(rounds.history) >= settings.epochs):
            rounds.say_done()
            return cls._of(_from_bytes(rounds.saved), train.schema, rounds)
        limit = train.memory_limit
        with step("quantise pages", 2, memory_limit=limit, kind=FRAMEWORK) as advance:
            training = dmatrix(train, max_bin=params["max_bin"])
            advance(1)
            validation = dmatrix(valid, training, max_bin=params["max_bin"])
        with (
            step("boost (rounds)", settings.epochs, kind=FRAMEWORK) as advance,
            rounds.interrupts.noted(),
        ):
            try:
                # Rows drawn after a restart are others than those drawn at first.
                params["seed"] += len(rounds.history)
                booster = xgboost.Booster(params, [training, validation], rounds.saved)
                while len(rounds.history) < settings.epochs and not rounds.stopped:
                    number = len(rounds.history)
                    booster.update(training, number)
                    evaluated = [(training, "train"), (validation, "valid")]
                    rounds.ended(booster, booster.eval_set(evaluated, number))
                    advance(number + 1)
            except xgboost.core.XGBoostError as error:
                raise InvalidInputError(
                    f"XGBoost refused: {str(error).splitlines()[0]}",
                    "check [model.params] and the label",
                ) from error
        return cls._of(booster, train.schema, rounds)

    @classmethod
    def _of(cls, booster: Any, schema: DatasetSchema, rounds: _Rounds) -> XGBoostModel:
        """Return the model that rounds led to: that of the best one, if training stops early."""
        if rounds.stops_early:
            booster = booster[: (best_epoch(rounds.history, "val_loss") or 0) + 1]
        # A trained Booster keeps its matrices and their cache files alive; a loaded one does not.
        history = [{"epoch": float(i), **one} for i, one in enumerate(rounds.history)]
        return cls(_from_bytes(booster.save_raw("ubj")), schema, history)

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
    params.update(config.model.params)
    bins = as_whole(params["max_bin"])
    if bins is None or bins < 2:
        raise InvalidInputError(
            f"[model.params] max_bin = {shown(params['max_bin'])} cuts numbers into no two ranges",
            "give a whole number from 2 on, or leave it out for 256",
        )
    return params


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


def _from_bytes(data: bytearray) -> Any:
    booster = xgboost.Booster()
    booster.load_model(data)
    return booster


class _Rounds:
    """The rounds of a training over its restarts: history, checkpoints, whether it ends early."""

    def __init__(self, config: RunConfig, work: Unfinished, say: Any) -> None:
        self._settings = config.train
        self._checkpoints = Checkpoints(work.checkpoints, config.train.checkpoint_keep)
        self._say = say
        self._said = time.monotonic()
        self.interrupts = Interrupts()
        self.saved: bytearray | None = None
        """The model to go on with."""
        self.history: list[dict[str, float]] = []
        newest = self._checkpoints.newest()
        if newest is not None:
            state = read_state(newest)
            try:
                self.history, expected = state["history"], state["model"]
                self.saved = bytearray((newest / FILE).read_bytes())
            except (OSError, KeyError) as error:
                raise damaged(newest, error) from error
            # XGBoost takes other bytes for another model, and ends the process over some.
            if digest(self.saved) != expected:
                raise damaged(newest, f"{FILE} does not have the digest that was written with it")

    @property
    def stops_early(self) -> bool:
        return bool(self._settings.early_stopping)

    def say_done(self) -> None:
        """Say so if more rounds are done than are asked for now."""
        done, asked = len(self.history), self._settings.epochs
        if done > asked and self._say is not None:
            self._say(
                f"{done} rounds are done already, more than epochs = {asked}: they are the run"
            )

    @property
    def stopped(self) -> bool:
        """Whether the rounds so far end training."""
        return waited_enough(self.history, "val_loss", self._settings.early_stopping)

    def ended(self, booster: Any, scores: str) -> None:
        """Count a round; save it if it is its turn, or on Ctrl-C.

        ``scores`` is what XGBoost says: ``[3]\\ttrain-auc:0.7\\ttrain-logloss:0.5\\tvalid-auc:...``; the last of each
        matrix is the loss, of a metric whose best is 1 what lacks to it.
        """
        values: dict[str, float] = {}
        for one in scores.split("\t")[1:]:
            name, value = one.rsplit(":", 1)
            matrix, metric = name.split("-", 1)
            rising = re.split("[@-]", metric)[0] in _HIGHER_IS_BETTER
            values[matrix] = 1 - float(value) if rising else float(value)
        self.history.append({"loss": values["train"], "val_loss": values["valid"]})
        done, every = len(self.history), self._settings.checkpoint_steps
        if self._say is not None and time.monotonic() - self._said > _EVERY_SECONDS:
            self._said = time.monotonic()
            self._say(
                f"round {done} of {self._settings.epochs}, loss {values['train']:.4f}, val_loss "
                f"{values['valid']:.4f}; {format_bytes(resident_bytes())} held"
            )
        asked = self.interrupts.asked
        if (every and done % every == 0) or asked:
            self._checkpoints.save(done, 0, lambda folder: self._fill(booster, folder))
        if asked:
            self.interrupts.raise_asked()

    def _fill(self, model: Any, folder: Path) -> None:
        model.save_model(folder / FILE)
        model_digest = digest((folder / FILE).read_bytes())
        write_state(folder, {"history": self.history, "model": model_digest})
