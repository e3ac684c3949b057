"""Packs that are read while they are written: order, waiting, errors, threads, what is left behind."""

from __future__ import annotations

import gc
import itertools
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.errors import CorruptionError, DiskFullError, MemoryLimitError
from featurestore.limits import resident_bytes
from featurestore.testing.datasets import ArrayPart
from featurestore.testing.loader_contract import LoaderContract, flat, row_numbers
from featurestore.testing.sliced_parts import SlicedPart, sliced
from training import Loader
from training.loading import filling as filling_module
from training.loading.pack import Pack, arranged
from training.loading.pack_cache import list_packs

pytestmark = pytest.mark.usefixtures("small_stripes", "no_thread_is_left")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "packs"


def small(part: ArrayPart, cache: Path, **options: Any) -> Loader:
    return Loader(part, 7, cache=cache, block_rows=8, window_blocks=2, **options)


class TestStripedLoader(LoaderContract):
    """The contract, for packs of several stripes, written and read at the same time."""

    def loader(self, part: ArrayPart, cache: Path, **options: Any) -> Loader:
        made = small(part, cache, **options)
        # Each test begins with packs that are not there.
        shutil.rmtree(cache, ignore_errors=True)
        return made

    def epochs(self, loader: Loader, count: int) -> list[list[list[int]]]:
        return [[row_numbers(batch) for batch in loader] for _ in range(count)]

    def part(self, rows: int) -> ArrayPart:
        return sliced(rows, min(rows, 9))


@pytest.mark.parametrize("shuffle", [True, False, "global"])
def test_a_pack_being_written_gives_the_batches_of_a_written_one(shuffle: Any, cache: Path) -> None:
    part = sliced(300, 9, tensor=(3,))
    written = small(part, cache, shuffle=shuffle, seed=3)
    written.pack.verify()
    expected = [list(written), list(written)]
    shutil.rmtree(cache)
    streamed = small(part, cache, shuffle=shuffle, seed=3)
    for epoch in expected:
        for one, other in zip(epoch, streamed, strict=True):
            for name, values in one.inputs.items():
                np.testing.assert_array_equal(other.inputs[name], values)
            assert one.label is not None
            np.testing.assert_array_equal(other.label, one.label)  # type: ignore[arg-type]
    streamed.pack.verify()
    assert [path for path, _, _ in list_packs(cache)] == [streamed.pack.path]
    again = Pack.for_part(part, cache, arrangement=streamed._arrangement)
    np.testing.assert_array_equal(
        again.read(0, 300).inputs["numeric"], streamed.pack.read(0, 300).inputs["numeric"]
    )


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_first_batches_do_not_wait_for_the_last_partitions(shuffle: Any, cache: Path) -> None:
    part = sliced(300, 10)
    loader = small(part, cache, shuffle=shuffle)
    assert len(loader._arrangement.stripes) == (5 if shuffle else 10)
    order = loader.steps.order_of(0)
    first = order.visited[0] if shuffle else 0  # type: ignore[union-attr]
    ready = loader._arrangement.stripes[first].partitions
    part.gate = threading.Event()
    part.behind = tuple(set(range(10)) - set(ready))
    batches = iter(loader)
    seen = [row_numbers(next(batches)) for _ in range(loader._arrangement.stripes[first].rows // 7)]
    assert not loader.begin().is_whole
    part.gate.set()
    rest = [row_numbers(one) for one in batches]
    assert sorted(flat([*seen, *rest])) == list(range(300))
    assert loader.begin().is_whole
    assert sorted(part.reads) == list(range(10))


def test_an_epoch_left_early_ends_the_threads_and_goes_on_later(cache: Path) -> None:
    part = sliced(300, 10)
    loader = small(part, cache, shuffle=True)
    seen = [row_numbers(one) for one in itertools.islice(loader, 2)]
    gc.collect()
    whole = [row_numbers(one) for one in loader]
    assert whole[:2] == seen
    assert sorted(flat(whole)) == list(range(300))
    loader.pack.verify()


def test_what_is_never_finished_is_removed_with_its_loader(cache: Path) -> None:
    loader = small(sliced(300, 10), cache, shuffle=True)
    part = loader.part
    assert isinstance(part, SlicedPart)
    part.gate, part.behind = threading.Event(), (3,)
    for step, _ in enumerate(loader):
        if step == 1:
            part.gate.set()  # the thread that waits there ends when the epoch is left
            break
    if not loader.begin().is_whole:
        assert any(one.name.startswith(".scratch") for one in cache.iterdir())
    del loader, part
    gc.collect()
    assert not any(one.name.startswith(".scratch") for one in cache.iterdir())


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_error_in_the_background_reaches_the_reader(shuffle: Any, cache: Path) -> None:
    part = sliced(300, 10)
    part.fails = 4
    loader = small(part, cache, shuffle=shuffle)
    with pytest.raises(CorruptionError, match="a partition is damaged"):
        list(loader)
    part.fails = None  # mended
    assert sorted(flat([row_numbers(one) for one in loader])) == list(range(300))
    loader.pack.verify()


def test_a_disk_that_is_full_at_the_end_is_said_and_can_be_mended(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = small(sliced(300, 10), cache, shuffle=True)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(filling_module, "_write_file", full)
        with pytest.raises(DiskFullError, match="the pack needs"):
            list(loader)
    assert list_packs_of(cache) == []
    assert sorted(flat([row_numbers(one) for one in loader])) == list(range(300))
    assert len(list_packs_of(cache)) == 1


def list_packs_of(cache: Path) -> list[Path]:
    return [path for path, _, _ in list_packs(cache)]


_RUN = """
import os, signal, sys, threading, time
from featurestore.testing.datasets import ArrayPart, numbered_part
from training import Loader

class Slow(ArrayPart):
    def arrays(self, partition):
        if partition > 20:
            time.sleep(0.2)
        return super().arrays(partition)

made = numbered_part(40_000, partitions=(1000,) * 40, numeric=300)
part = Slow(made.schema, made.inputs, made.label, made.partition_rows, made.name)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
try:
    for step, _ in enumerate(Loader(part, 100, cache=sys.argv[1])):
        if step == 3:
            os.kill(os.getpid(), int(sys.argv[2]))
except KeyboardInterrupt:
    for _ in range(100):
        if threading.active_count() > 1:
            time.sleep(0.01)
    print("interrupted", [one.name for one in threading.enumerate()])
"""


def test_ctrl_c_in_a_first_epoch_leaves_no_thread_and_no_file(cache: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(cache), str(int(signal.SIGINT))],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout == "interrupted ['MainThread']\n", done.stderr
    assert done.returncode == 0, done.stderr
    assert list(cache.iterdir()) == []


def test_what_a_killed_first_epoch_left_goes_with_the_next(cache: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", _RUN, str(cache), str(int(signal.SIGKILL))],
        check=False, timeout=60,
    )  # fmt: skip
    assert killed.returncode == -9
    assert [one.name[:9] for one in cache.iterdir()] == [".scratch-"]
    list(small(sliced(300, 10), cache, shuffle=True))
    assert [one.name.startswith(".") for one in cache.iterdir()] == [False]


def test_single_batches_write_what_they_need_alone(cache: Path) -> None:
    part = sliced(300, 10)
    loader = small(part, cache, shuffle=False)
    assert row_numbers(loader[20]) == list(range(140, 147))
    assert part.reads == [4]
    assert row_numbers(loader.batch(0, 5)) == list(range(7))
    assert part.reads == [4, 0]


def test_two_readers_of_one_loader_share_the_writing(cache: Path) -> None:
    part = sliced(600, 20)
    loader = small(part, cache, shuffle=True)
    found: list[list[int]] = []

    def read() -> None:
        found.append(flat([row_numbers(loader.batch(one, 0)) for one in range(len(loader))]))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for one in threads:
        one.start()
    seen = flat([row_numbers(one) for one in loader])
    for one in threads:
        one.join()
    assert found == [seen] * 3
    assert sorted(part.reads) == list(range(20))


def test_of_two_that_write_the_same_pack_one_stays(cache: Path) -> None:
    part = sliced(300, 10)
    one, two = small(part, cache, shuffle=True), small(part, cache, shuffle=True)
    both = list(zip(one, two, strict=True))
    assert all(row_numbers(a) == row_numbers(b) for a, b in both)
    one.pack.verify()
    two.pack.verify()
    del one, two, both
    gc.collect()
    assert len(list(cache.iterdir())) == 1


def test_an_epoch_that_does_not_fit_beside_the_writing_comes_after_it(cache: Path) -> None:
    part = sliced(4000, 10, numeric=64)
    loader = small(part, cache, shuffle=True)
    together, epoch = loader.memory().activities
    assert "while the pack is written" in together.activity
    one_writer = max(loader._row_source.writing().partitions)
    limit = resident_bytes() + one_writer + epoch.added // 2
    tight = small(part, cache, shuffle=True, memory_limit=limit)
    assert tight.memory().activities[0].activity == "writing the pack"
    batches = iter(tight)
    next(batches)
    assert tight.begin().is_whole
    batches.close()  # type: ignore[attr-defined]
    with pytest.raises(MemoryLimitError, match="set memory_limit to at least"):
        small(part, cache, shuffle=False, memory_limit=limit - one_writer).pack  # noqa: B018


def test_rows_are_mixed_across_the_partitions_of_a_stripe(cache: Path) -> None:
    part = sliced(400, 4)
    pack = Pack.for_part(part, cache, arrangement=arranged(part, mixed=True))
    for stripe in arranged(part, mixed=True).stripes:
        rows = row_numbers(pack.read(stripe.start, stripe.stop))
        origin = [one // 100 for one in rows]
        for start in range(0, stripe.rows - 32, 32):
            assert set(origin[start : start + 32]) == set(stripe.partitions)


def test_writing_is_shown_as_a_step(cache: Path) -> None:
    from featurestore.execution.events import Event, StepAdvanced, StepStarted, observed_by

    events: list[Event] = []
    with observed_by(events.append):
        list(small(sliced(300, 10), cache, shuffle=True))
    started = [one for one in events if isinstance(one, StepStarted)]
    assert [(one.label, one.total) for one in started] == [("write pack (rows)", 300)]
    assert started[0].projected_bytes > 0
    assert max(one.done for one in events if isinstance(one, StepAdvanced)) == 300
