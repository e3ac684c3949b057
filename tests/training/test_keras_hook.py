"""Keras: what the model sees is the loader's order, whatever ``fit`` does with it."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow")

import keras
import tensorflow as tf
from keras.src.backend.tensorflow.trainer import TFEpochIterator

from featurestore.dataset.batch import Batch, DatasetSchema, Input, Role
from featurestore.errors import CorruptionError, DefinitionError, InvalidInputError
from featurestore.testing.datasets import ArrayPart, numbered_part
from featurestore.testing.loader_contract import Batches, HookContract, flat, row_numbers
from training import Loader
from training.hooks.elements import element
from training.models import tabular

ROWS = 100


class Recorder(keras.Model):
    """A logistic regression that writes down which rows it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(1, activation="sigmoid")
        self.trained: Batches = []

    def call(self, inputs: Any, training: bool = False) -> Any:
        if training:
            self.trained.append([int(one) for one in np.asarray(inputs["numeric"])[:, 0]])
        return self.dense(inputs["numeric"][:, 1:])


def recorder() -> Recorder:
    model = Recorder()
    model.compile("sgd", "binary_crossentropy", run_eagerly=True)
    # Built before, so that fit does not call it once more to learn its shapes.
    model({"numeric": np.zeros((1, 3), dtype=np.float32)})
    return model


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "packs"


def small(part: ArrayPart, cache: Path, **options: Any) -> Loader:
    return Loader(
        part, options.pop("batch_size", 7), cache=cache, block_rows=16, window_blocks=3, **options
    )


def orders(cache: Path, count: int, **options: Any) -> list[Batches]:
    loader = small(numbered_part(ROWS), cache, **options)
    return [[row_numbers(batch) for batch in loader] for _ in range(count)]


def cut(batches: Batches, steps: int) -> list[Batches]:
    return [batches[start : start + steps] for start in range(0, len(batches), steps)]


def as_numpy(element: Any) -> list[Any]:
    return list(keras.tree.map_structure(lambda one: one.numpy(), element))


class TestTfData(HookContract):
    """A ``tf.data.Dataset``: its position is what came out of its queue."""

    def loader(self, part: ArrayPart, cache: Path, **options: Any) -> Loader:
        return small(part, cache, **options)

    def hook(self, loader: Loader) -> Any:
        return loader.tf_data()

    def arrays(self, element: Any) -> list[Any]:
        return as_numpy(element)


class FitEpochs:
    """The batches that ``fit`` draws, epoch by epoch: by Keras' own iterator, as ``fit`` uses it."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._epochs = self._made(loader)
        self._epochs.reset()

    @staticmethod
    def _made(loader: Loader) -> Any:
        if keras.backend.backend() == "torch":
            from keras.src.backend.torch.trainer import TorchEpochIterator

            return TorchEpochIterator(x=loader.keras())
        return TFEpochIterator(x=loader.keras(), distribute_strategy=tf.distribute.get_strategy())

    def __len__(self) -> int:
        return int(self._epochs.num_batches)

    def __iter__(self) -> Iterator[Any]:
        # Where training goes on in an epoch, a callback ends it: see training.hooks.checkpoint.
        left = self._loader.steps_left
        return itertools.islice(map(self._element, self._epochs), left)

    @staticmethod
    def _element(step: Any) -> Any:
        # TensorFlow is given the iterator that it draws steps from, PyTorch a list of one element.
        return step[2][0] if isinstance(step[2], list) else next(step[2])


class TestKeras(HookContract):
    """What ``fit`` gets."""

    def loader(self, part: ArrayPart, cache: Path, **options: Any) -> Loader:
        return small(part, cache, **options)

    def hook(self, loader: Loader) -> Any:
        return FitEpochs(loader)

    def arrays(self, element: Any) -> list[Any]:
        return as_numpy(element)

    @pytest.mark.parametrize(("rows", "last"), [(0, "keep"), (5, "drop")])
    def test_no_batches_are_no_elements(self, rows: int, last: str, cache: Path) -> None:
        """Keras cannot train on nothing: its losses have no value then. It is told so before."""
        with pytest.raises(InvalidInputError, match=f"{rows} rows has no batch of 7"):
            small(numbered_part(rows), cache, last=last).keras()


@pytest.fixture
def trained(cache: Path) -> Iterator[Any]:
    """Yield a function that fits and returns what the model saw, in order."""

    def run(loader: Loader, **options: Any) -> Batches:
        model = recorder()
        model.fit(loader.keras(), verbose=0, **options)
        return model.trained

    before = threading.active_count()
    yield run
    assert threading.active_count() <= before, "no thread is left behind"


@pytest.mark.parametrize("shuffle", [True, "global", False])
@pytest.mark.parametrize("fit_shuffle", [True, False])
def test_epochs_follow_the_loader(
    shuffle: Any, fit_shuffle: bool, cache: Path, trained: Any
) -> None:
    loader = small(numbered_part(ROWS), cache, shuffle=shuffle, seed=3)
    seen = trained(loader, epochs=3, shuffle=fit_shuffle)
    assert cut(seen, len(loader)) == orders(cache, 3, shuffle=shuffle, seed=3)
    assert loader.epoch == 3


def test_validation_does_not_disturb_training(cache: Path, trained: Any) -> None:
    loader = small(numbered_part(ROWS), cache, shuffle=True)
    valid = small(numbered_part(30, seed=9), cache)
    seen = trained(loader, epochs=3, validation_data=valid.keras())
    assert cut(seen, len(loader)) == orders(cache, 3, shuffle=True)


def test_repeated_fits_go_on(cache: Path) -> None:
    loader = small(numbered_part(ROWS), cache, shuffle=True)
    model, data = recorder(), loader.keras()
    for _ in range(3):
        model.fit(data, verbose=0)
    assert cut(model.trained, len(loader)) == orders(cache, 3, shuffle=True)


def test_steps_per_epoch_cuts_the_stream_of_epochs(cache: Path, trained: Any) -> None:
    loader = small(numbered_part(ROWS), cache, shuffle=True)
    seen = trained(loader, epochs=3, steps_per_epoch=5)
    assert seen == orders(cache, 1, shuffle=True)[0]
    loader = small(numbered_part(ROWS), cache, shuffle=True)
    seen = trained(loader, epochs=2, steps_per_epoch=len(loader))
    assert cut(seen, len(loader)) == orders(cache, 2, shuffle=True)


def test_stopping_in_an_epoch_leaves_no_thread_and_begins_it_again(
    cache: Path, trained: Any
) -> None:
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 3:
                self.model.stop_training = True

    loader = small(numbered_part(200), cache, shuffle=True)
    seen = trained(loader, epochs=2, callbacks=[Stop()])
    assert len(seen) == 4
    again = trained(loader, epochs=1)
    assert again[:4] == seen
    assert len(again) == len(loader)


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_an_exception_in_the_model_leaves_no_thread(
    error: type[BaseException], cache: Path, trained: Any
) -> None:
    class Fail(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            raise error("broken callback")

    with pytest.raises(error, match="broken callback"):
        trained(small(numbered_part(1000), cache), callbacks=[Fail()])


def test_an_error_in_the_loader_surfaces_with_its_cause(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = small(numbered_part(ROWS), cache)

    def failing(*_: Any) -> Any:
        raise InvalidInputError("the pack is gone")

    monkeypatch.setattr(loader.pack, "read", failing)
    with pytest.raises(Exception, match="the pack is gone"):
        recorder().fit(loader.keras(), verbose=0)


def test_an_error_in_the_background_surfaces_as_it_is(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = small(numbered_part(300), cache, shuffle=True)
    plain, seen = loader.pack.gather, recorder()

    def failing(rows: Any) -> Any:
        if len(seen.trained) >= 3:
            raise CorruptionError("the pack is gone")
        return plain(rows)

    monkeypatch.setattr(loader.pack, "gather", failing)
    batches = loader.keras()
    with pytest.raises(CorruptionError, match="the pack is gone"), batches.surfacing_errors():
        seen.fit(batches, verbose=0)
    # What waited in the queue is trained, no more; the loader is where the model is.
    assert 3 <= len(seen.trained) == loader.state_dict()["step"] <= 3 + 4 + 2


def test_an_iterator_that_is_dropped_leaves_no_thread(cache: Path) -> None:
    before = set(threading.enumerate())
    loader = small(numbered_part(300), cache)
    iterator = iter(loader.tf_data())
    next(iterator)
    del iterator
    gc.collect()
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("use", ["whole", "stopped", "mapped", "fit"])
def test_a_loader_that_is_dropped_is_collected(use: str, cache: Path) -> None:
    loader = small(numbered_part(300), cache, shuffle=True)
    gone = weakref.ref(loader), weakref.ref(loader.pack)
    model = recorder()
    if use == "fit":
        model.fit(loader.keras(), validation_data=loader.keras(), verbose=0)
    elif use == "mapped":
        made = loader.tf_data().map(lambda inputs, label: (inputs["numeric"], label))
        gc.collect()
        assert sum(len(label) for _, label in made.batch(1).unbatch()) == 300
        del made
    else:
        iterator = iter(loader.tf_data())
        gc.collect()
        for _ in itertools.islice(iterator, None if use == "whole" else 3):
            pass
        del iterator
    del loader
    gc.collect()
    assert [one() for one in gone] == [None, None]


def test_the_rest_of_a_resumed_epoch_is_an_epoch_of_its_own(cache: Path) -> None:
    whole = orders(cache, 3, shuffle=True)
    first = small(numbered_part(ROWS), cache, shuffle=True)
    iterator = iter(first)
    for _ in range(4):
        next(iterator)
    resumed = small(numbered_part(ROWS), cache, shuffle=True)
    resumed.load_state_dict(first.state_dict())
    model = recorder()
    model.fit(resumed.keras(), steps_per_epoch=resumed.steps_left, verbose=0)
    model.fit(resumed.keras(), epochs=2, verbose=0)
    assert model.trained == [*whole[0][4:], *whole[1], *whole[2]]


def test_ranks_train_on_their_share(cache: Path) -> None:
    part = numbered_part(ROWS)
    models = [recorder() for _ in range(3)]
    for rank, model in enumerate(models):
        model.fit(small(part, cache, shuffle=True).shard(rank, 3).keras(), verbose=0)
    assert len({len(model.trained) for model in models}) == 1
    assert sorted(flat(flat(model.trained) for model in models)) == list(range(ROWS))


@pytest.mark.parametrize("rows", [5, 7, 15])
def test_batches_drawn_to_learn_shapes_are_not_missed(rows: int, cache: Path) -> None:
    loader = small(numbered_part(rows), cache, shuffle=True)
    model = Recorder()
    model.compile("sgd", "binary_crossentropy", metrics=["accuracy"], run_eagerly=True)
    model.fit(loader.keras(), epochs=2, verbose=0)
    whole = small(numbered_part(rows), cache, shuffle=True)
    expected = [row_numbers(batch) for _ in range(2) for batch in whole]
    assert model.trained[-len(expected) :] == expected
    assert loader.epoch == 2


@pytest.mark.parametrize("late", [False, True])
def test_a_batch_on_its_way_is_not_counted(late: bool, cache: Path) -> None:
    loader = small(numbered_part(30), cache)
    batches = loader.keras()._read(late=late)
    steps = [loader.state_dict()["step"] for _ in batches]
    assert steps == ([0, 1, 2, 3, 4] if late else [1, 2, 3, 4, 0])
    assert loader.epoch == 1


def on_another_backend(backend: str, chosen: str, folder: Path) -> None:
    """Run tests of this file in a process of their own."""
    pytest.importorskip(backend)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        chosen,
    ]
    # Tensors of PyTorch do not know NumPy 2's copy= yet; Keras converts them.
    quiet = ["-W", "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"]
    done = subprocess.run(
        [*command, *quiet, "--basetemp", str(folder / backend)],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_what_needs_nothing_of_tensorflow_on_another_backend(backend: str, tmp_path: Path) -> None:
    chosen = "(epochs_follow and True-global) or disturb or learn_shapes or cover or rest_of"
    on_another_backend(backend, chosen, tmp_path)


@pytest.mark.slow
def test_all_of_it_on_torch(tmp_path: Path) -> None:
    """The contract of what ``fit`` gets, class weights, early stopping and errors among it."""
    on_another_backend("torch", "not TestTfData and not another_backend and not on_torch", tmp_path)


def test_predict_and_evaluate_cover_each_row_in_table_order(cache: Path) -> None:
    loader = small(numbered_part(ROWS), cache)
    model = recorder()
    found = model.predict(loader.keras(), verbose=0)
    expected = keras.ops.convert_to_numpy(model(dict(loader.pack.read(0, ROWS).inputs)))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    loss = model.evaluate(loader.keras(), verbose=0)
    batch = loader.pack.read(0, ROWS)
    assert loss == pytest.approx(
        float(keras.losses.BinaryCrossentropy()(batch.label[:, None], expected)), rel=1e-4
    )


def test_training_learns_and_is_reproducible(cache: Path) -> None:
    part = numbered_part(4000, partitions=(1500, 2500), cardinalities=(4, 30), tensor=(3,))
    part.inputs["numeric"][:, 0] = 0  # the row number is no feature
    histories = []
    # Keras has no several steps at once on PyTorch, and says so.
    for steps_per_execution in (1, 1 if keras.backend.backend() == "torch" else 4):
        keras.utils.set_random_seed(1)
        loader = Loader(part, 256, shuffle=True, seed=0, cache=cache)
        valid = Loader(part, 512, cache=cache)
        model = tabular(part.schema, "binary", hidden=(16,), dropout=0.1, seed=1)
        model.compile(
            keras.optimizers.Adam(0.01),
            "binary_crossentropy",
            metrics=["accuracy"],
            steps_per_execution=steps_per_execution,
        )
        fitted = model.fit(
            loader.keras(), validation_data=valid.keras(), epochs=4, verbose=0, shuffle=True
        )
        histories.append(fitted.history)
    for name, values in histories[0].items():
        assert values == pytest.approx(histories[1][name], rel=1e-5)
    assert histories[0]["val_loss"][-1] < 0.7 * histories[0]["val_loss"][0]
    assert histories[0]["val_accuracy"][-1] > 0.9


def test_one_numeric_input_by_its_name(cache: Path) -> None:
    part = numbered_part(64, cardinalities=())
    inputs = keras.Input((3,), name="numeric")
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse")
    loader = Loader(part, 16, cache=cache)
    with warnings.catch_warnings():
        # Keras says that a dict is not a tensor, and takes the tensor out of it.
        warnings.filterwarnings("ignore", "Exception encountered", UserWarning)
        warnings.filterwarnings("ignore", "The structure of `inputs`", UserWarning)
        model.fit(loader.keras(), verbose=0)
    assert model.predict(loader.keras(inputs="tuple"), verbose=0).shape == (64, 1)


def test_inputs_by_position(cache: Path) -> None:
    part = numbered_part(64, cardinalities=(3,))
    numbers, codes = keras.Input((3,)), keras.Input((), dtype="int32")
    embedded = keras.layers.Embedding(3, 2)(codes)
    joined = keras.layers.Concatenate()([numbers, embedded])
    model = keras.Model((numbers, codes), keras.layers.Dense(1)(joined))
    model.compile("sgd", "mse")
    loader = Loader(part, 16, cache=cache)
    model.fit(loader.keras(inputs="tuple"), verbose=0)
    assert model.predict(loader.keras(inputs="tuple"), verbose=0).shape == (64, 1)
    with pytest.raises(InvalidInputError, match="inputs='list'"):
        loader.keras(inputs="list")


def test_class_weights_are_sample_weights(cache: Path) -> None:
    loader = small(numbered_part(ROWS), cache)
    for _, label, weight in loader.keras(class_weight={1: 3.0}).get_numpy_iterator():
        np.testing.assert_array_equal(weight, np.where(label == 1, 3.0, 1.0))
    recorder().fit(loader.keras(class_weight={1: 3.0}), verbose=0)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("uint8", "int32"), ("int64", "int64"), ("float64", "float32"), ("float16", "float32")],
)
def test_labels_reach_losses_as_float32_or_integers(dtype: str, expected: str, cache: Path) -> None:
    schema = DatasetSchema((Input("v", Role.NUMERIC, "float32"), Input("y", Role.LABEL, dtype)))
    inputs = {"numeric": np.zeros((4, 1), dtype=np.float32)}
    part = ArrayPart(schema, inputs, np.arange(4).astype(dtype), (4,))
    ((found, label),) = list(Loader(part, 8, cache=cache).tf_data())
    assert label.dtype == tf.as_dtype(expected)
    assert found["numeric"].shape == (4, 1)


def test_a_part_without_label_predicts(cache: Path) -> None:
    part = numbered_part(20)
    plain = ArrayPart(DatasetSchema(part.schema.columns[:-1]), part.inputs, None, (20,), "plain")
    assert recorder().predict(small(plain, cache).keras(), verbose=0).shape == (20, 1)
    with pytest.raises(InvalidInputError, match="needs one label"):
        small(plain, cache).keras(class_weight={0: 1.0})


@pytest.mark.parametrize(
    ("task", "options", "shape", "activation"),
    [
        ("binary", {}, (None, 1), "sigmoid"),
        ("regression", {"batch_norm": True}, (None, 1), "linear"),
        ("multiclass", {"classes": 5}, (None, 5), "softmax"),
    ],
)
def test_the_built_in_network_has_the_head_of_its_task(
    task: str, options: dict[str, Any], shape: Any, activation: str
) -> None:
    schema = numbered_part(1, cardinalities=(4, 300), tensor=(2, 2)).schema
    model = tabular(schema, task, hidden=(8, 4), **options)
    assert model.output_shape == shape
    assert model.layers[-1].activation.__name__ == activation
    assert {one.name for one in model.inputs} == {"numeric", "c0", "c1", "vector"}


def test_equal_seeds_give_equal_weights() -> None:
    schema = numbered_part(1).schema
    one, two, other = (tabular(schema, seed=seed).get_weights() for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(one, two, strict=True))
    assert any((a != b).any() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    "options",
    [{"task": "rank"}, {"task": "multiclass"}, {"hidden": (0,)}, {"dropout": 1.0}],
)
def test_bad_networks_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        tabular(numbered_part(1).schema, **options)
    with pytest.raises(DefinitionError):
        tabular(DatasetSchema(()))


def test_padding_counts_in_no_weighted_metric(cache: Path) -> None:
    part = numbered_part(20)
    model = Recorder()
    model.compile("sgd", "binary_crossentropy", weighted_metrics=["mae"])
    kept, padded = (small(part, cache, last=one) for one in ("keep", "pad"))
    expected = model.evaluate(kept.keras(), verbose=0, return_dict=True)
    found = model.evaluate(padded.keras(), verbose=0, return_dict=True)
    assert found["mae"] == pytest.approx(expected["mae"], rel=1e-6)
    weights = [w.numpy() for _, _, w in padded.keras({1: 3.0}).get_tf_dataset()]
    labels = [batch.label for batch in padded]
    real = [batch.weight for batch in padded]
    for weight, label, one in zip(weights, labels, real, strict=True):
        np.testing.assert_array_equal(weight, np.where(label == 1, 3.0, 1.0) * one)


def test_several_labels_are_learnt_with_weights(cache: Path) -> None:
    part = numbered_part(200, labels=2, weight=True)
    part.inputs["numeric"][:, 0] = 0  # row numbers would saturate the model
    features = keras.Input((3,), name="numeric")
    hidden = keras.layers.Dense(4)(features)
    outputs = {
        name: keras.layers.Dense(1, activation="sigmoid", name=name)(hidden)
        for name in ("late", "odd")
    }
    model = keras.Model({"numeric": features, "c0": keras.Input((), name="c0")}, outputs)
    model.compile("sgd", "binary_crossentropy")
    data = small(part, cache, batch_size=64, last="pad").keras()
    found = model.evaluate(data, verbose=0, return_dict=True)
    expected = 0.0
    for batch in data.loader:
        predicted = model.predict_on_batch(dict(batch.inputs))
        for name, label in batch.labels.items():
            score = predicted[name][:, 0].astype(np.float64).clip(1e-7, 1 - 1e-7)
            losses = -np.where(label == 1, np.log(score), np.log1p(-score))
            assert batch.weight is not None
            expected += float((losses * batch.weight).sum())
    steps = len(data.loader) * 64
    assert found["loss"] == pytest.approx(expected / steps, rel=1e-3)
    assert model.fit(data, verbose=0).history["loss"]


@pytest.mark.parametrize(
    "weights", [{"1": 5.0}, {1: -1.0}, {1: float("nan")}, {1: float("inf")}, {0: "a"}, [1.0, 2.0]]
)
def test_weights_of_classes_are_checked(weights: Any, cache: Path) -> None:
    with pytest.raises(InvalidInputError, match="class_weight"):
        Loader(numbered_part(20), 7, cache=cache).keras(class_weight=weights)


def test_the_last_batch_of_a_rank_is_told(cache: Path) -> None:
    one = Loader(numbered_part(68), 10, cache=cache)
    for loader in (one, one.shard(0, 2), one.shard(1, 2)):
        batches = loader.keras()
        sizes = [batch.rows for batch in loader]
        assert batches.has_partial_batch == (sizes[-1] != 10)
        assert batches.partial_batch_size == (sizes[-1] if sizes[-1] != 10 else None)


@pytest.mark.parametrize("label", [np.array([1, 2**64 - 1], np.uint64), np.array([0.5, 1e300])])
def test_labels_that_would_be_cut_are_refused(label: Any) -> None:
    batch = Batch({"numeric": np.zeros((2, 1), np.float32)}, label)
    with pytest.raises(InvalidInputError, match="beyond"):
        element(batch)
    whole = element(Batch(batch.inputs, np.array([np.inf, np.nan, 1e30])))[1]
    assert whole.dtype == np.float32
