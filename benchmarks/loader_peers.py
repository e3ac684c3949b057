"""Other loaders' epochs of the same rows, each as it is meant to be used for shuffled batches.

``rows_file`` holds the rows' values one row after the other, ``labels_file`` their labels (both with
something behind them); ``files`` are Parquet. What the libraries' own processes take is not in a
case's memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from feeding import Array, Arrays, Epoch, column_words, fed, names, side_by_side
from measuring import POLARS

BLOCK_ROWS = 8192
WINDOW_BLOCKS = 16
BUFFER_ROWS = BLOCK_ROWS * WINDOW_BLOCKS


def mapped(arguments: dict[str, Any]) -> Arrays:
    rows, columns = arguments["rows"], arguments["columns"]
    return (
        np.memmap(arguments["rows_file"], np.float32, "r", shape=(rows, columns)),
        np.memmap(arguments["labels_file"], np.float32, "r", shape=(rows,)),
    )


def windows(rows: int, random: np.random.Generator) -> Iterator[Array]:
    """Yield the first rows of the blocks that are mixed with each other."""
    starts = random.permutation(-(-rows // BLOCK_ROWS)) * BLOCK_ROWS
    for first in range(0, len(starts), WINDOW_BLOCKS):
        yield starts[first : first + WINDOW_BLOCKS]


def with_plain_map(arguments: dict[str, Any]) -> dict[str, Any]:
    """Blocks in random order through a memory map, rows permuted within a window of them."""
    rows, size = arguments["rows"], arguments["batch_size"]

    def prepare() -> Epoch:
        sources = mapped(arguments)
        outs = [np.empty((size, *one.shape[1:]), one.dtype) for one in sources]
        random = np.random.default_rng(0)

        def epoch() -> Iterator[Arrays]:
            for starts in windows(rows, random):
                order = (starts[:, None] + np.arange(BLOCK_ROWS)).reshape(-1)
                order = random.permutation(order[order < rows])
                yield from taken(sources, order, outs)

        return epoch

    return fed(arguments, prepare, ())


def with_plain_reads(arguments: dict[str, Any]) -> dict[str, Any]:
    """Blocks in random order read into one buffer, rows permuted within it."""
    rows, size = arguments["rows"], arguments["batch_size"]

    def prepare() -> Epoch:
        likes = mapped(arguments)
        files = [os.open(arguments[one], os.O_RDONLY) for one in ("rows_file", "labels_file")]
        held = [np.empty((BUFFER_ROWS, *one.shape[1:]), one.dtype) for one in likes]
        outs = [np.empty((size, *one.shape[1:]), one.dtype) for one in likes]
        random = np.random.default_rng(0)

        def epoch() -> Iterator[Arrays]:
            for starts in windows(rows, random):
                end = 0
                for start in starts.tolist():
                    block = min(BLOCK_ROWS, rows - start)
                    for file, into in zip(files, held, strict=True):
                        place = into[end : end + block]
                        os.preadv(file, [place], start * place[0].nbytes)
                    end += block
                yield from taken(held, random.permutation(end), outs)

        return epoch

    return fed(arguments, prepare, ())


def taken(sources: Any, order: Array, outs: list[Array]) -> Iterator[Arrays]:
    """Yield batches of rows in an order, always in the same memory."""
    for start in range(0, len(order), len(outs[0])):
        picked = order[start : start + len(outs[0])]
        for source, out in zip(sources, outs, strict=True):
            np.take(source, picked, axis=0, out=out[: len(picked)], mode="clip")
        yield outs[0][: len(picked)], outs[1][: len(picked)]


def with_polars(arguments: dict[str, Any]) -> dict[str, Any]:
    """The columns decoded, file by file: no batches, no shuffle."""

    def prepare() -> Epoch:
        import polars as pl

        def epoch() -> Iterator[Any]:
            for file in arguments["files"]:
                frame = pl.read_parquet(file, columns=[*names(arguments), "y"])
                columns = [one.to_numpy() for one in frame.iter_columns()]
                yield columns[:-1], columns[-1]

        return epoch

    return fed(arguments, prepare, POLARS, column_words)


def with_torch(arguments: dict[str, Any]) -> dict[str, Any]:
    """``DataLoader`` over a memory map, a list of rows at a time: all rows shuffled."""

    def prepare() -> Epoch:
        from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

        values, labels = mapped(arguments)

        class Rows(Dataset):  # type: ignore[misc]
            def __len__(self) -> int:
                return len(labels)

            def __getitem__(self, rows: list[int]) -> Arrays:
                return values[rows], labels[rows]

        data = Rows()
        sampler = BatchSampler(RandomSampler(data), arguments["batch_size"], drop_last=False)
        batches = DataLoader(data, sampler=sampler, batch_size=None)
        return lambda: ((x.numpy(), y.numpy()) for x, y in batches)

    return fed(arguments, prepare, ("torch.utils.data",))


def with_tensorflow(arguments: dict[str, Any]) -> dict[str, Any]:
    """``tf.data`` over the row-major file, its records mixed in a buffer of as many rows as a window."""

    def prepare() -> Epoch:
        import tensorflow as tf

        rows = arguments["rows"]
        records = []
        for file, size in (("rows_file", 4 * arguments["columns"]), ("labels_file", 4)):
            behind = Path(arguments[file]).stat().st_size - rows * size
            records.append(
                tf.data.FixedLengthRecordDataset(arguments[file], size, footer_bytes=behind)
            )

        def decoded(values: Any, labels: Any) -> Any:
            return tf.io.decode_raw(values, tf.float32), tf.io.decode_raw(labels, tf.float32)[:, 0]

        data = tf.data.Dataset.zip(tuple(records)).shuffle(BUFFER_ROWS)
        data = data.batch(arguments["batch_size"], num_parallel_calls=tf.data.AUTOTUNE)
        data = data.map(decoded, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
        return lambda: ((x.numpy(), y.numpy()) for x, y in data)

    return fed(arguments, prepare, ("tensorflow",))


def with_datasets(arguments: dict[str, Any]) -> dict[str, Any]:
    """Hugging Face: its Arrow file streamed, rows mixed in a buffer of as many as a window.

    In Arrow format; as NumPy, or all rows shuffled, it is many times slower.
    """

    def prepare() -> Epoch:
        import datasets

        datasets.disable_progress_bars()
        data = datasets.Dataset.from_parquet(
            arguments["files"], columns=[*names(arguments), "y"], cache_dir=arguments["scratch"]
        )
        shards = max(1, arguments["rows"] // BUFFER_ROWS)
        data = data.with_format("arrow").to_iterable_dataset(num_shards=shards)
        mixed = data.shuffle(seed=0, buffer_size=BUFFER_ROWS)
        number = count()

        def epoch() -> Iterator[Arrays]:
            mixed.set_epoch(next(number))
            for one in mixed.iter(arguments["batch_size"]):
                columns = [one[name].to_numpy() for name in names(arguments)]
                yield side_by_side(columns), one["y"].to_numpy()

        return epoch

    return fed(arguments, prepare, ("datasets",))


def with_petastorm(arguments: dict[str, Any]) -> dict[str, Any]:
    """Petastorm's batch reader: row groups in random order, rows of a group in theirs."""

    def prepare() -> Epoch:
        from petastorm import make_batch_reader

        def epoch() -> Iterator[Arrays]:
            with make_batch_reader(
                [f"file://{one}" for one in arguments["files"]],
                schema_fields=[*names(arguments), "y"],
                reader_pool_type="thread", workers_count=2, shuffle_row_groups=True,
            ) as reader:  # fmt: skip
                for one in reader:
                    yield side_by_side([getattr(one, name) for name in names(arguments)]), one.y

        return epoch

    return fed(arguments, prepare, ("petastorm",))


def with_ray(arguments: dict[str, Any]) -> dict[str, Any]:
    """Ray Data: blocks in random order, rows mixed in a buffer of as many as a window."""

    def prepare() -> Epoch:
        import ray

        ray.init(include_dashboard=False, log_to_driver=False, _temp_dir=arguments["scratch"])
        ray.data.DataContext.get_current().enable_progress_bars = False
        columns = [*names(arguments), "y"]

        def epoch() -> Iterator[Arrays]:
            data = ray.data.read_parquet(arguments["files"], columns=columns, shuffle="files")
            for one in data.iter_batches(
                batch_size=arguments["batch_size"], local_shuffle_buffer_size=BUFFER_ROWS,
                batch_format="numpy",
            ):  # fmt: skip
                yield side_by_side([one[name] for name in names(arguments)]), one["y"]

        return epoch

    try:
        return fed(arguments, prepare, ("ray.data",))
    finally:
        import ray

        ray.shutdown()
