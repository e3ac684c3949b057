"""Batches made ahead by a thread: the same batches, bounded, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Generator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from featurestore.errors import CorruptionError, InvalidInputError, MemoryLimitError
from featurestore.testing.datasets import ArrayPart, numbered_part
from featurestore.testing.loader_contract import Batches, LoaderContract, row_numbers
from training import Loader, Mixture
from training.loading.prefetching import prefetched


def own_threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("featurestore")]


class TestPrefetched(LoaderContract):
    def loader(self, part: ArrayPart, cache: Path, **options: Any) -> Loader:
        return Loader(
            part,
            self.batch_size,
            block_rows=16,
            window_blocks=2,
            cache=cache,
            prefetch=2,
            **options,
        )

    def epochs(self, loader: Loader, count: int) -> list[Batches]:
        found = [[row_numbers(batch) for batch in loader] for _ in range(count)]
        assert not own_threads()
        return found


class Counted:
    """Makes numbers, and knows how many, in which thread, and whether it was closed."""

    def __init__(self, count: int, fails_at: int = -1) -> None:
        self.count, self.fails_at = count, fails_at
        self.made = 0
        self.threads: set[str] = set()
        self.closed = False

    def __call__(self) -> Generator[int, None, None]:
        try:
            for number in range(self.count):
                self.threads.add(threading.current_thread().name)
                if number == self.fails_at:
                    raise ValueError(f"there is no {number}")
                self.made += 1
                yield number
        finally:
            self.closed = True


@pytest.mark.parametrize("ahead", [1, 2, 5, 100])
def test_everything_comes_in_order_from_another_thread(ahead: int) -> None:
    source = Counted(50)
    assert list(prefetched(source(), ahead)) == list(range(50))
    assert source.closed
    assert len(source.threads) == 1
    assert threading.current_thread().name not in source.threads
    assert not own_threads()


@pytest.mark.parametrize("ahead", [1, 3])
def test_no_more_are_made_than_may_wait(ahead: int) -> None:
    source = Counted(50)
    most = 0
    for number in prefetched(source(), ahead):
        most = max(most, source.made - number - 1)
    assert 0 <= most <= ahead


def test_nothing_begins_before_it_is_asked_for() -> None:
    source = Counted(5)
    items = prefetched(source(), 2)
    assert (source.made, own_threads()) == (0, [])
    del items
    assert source.made == 0


def test_an_error_comes_where_its_item_would_have_as_itself() -> None:
    source = Counted(50, fails_at=7)
    items = prefetched(source(), 4)
    assert list(islice(items, 7)) == list(range(7))
    with pytest.raises(ValueError, match="there is no 7") as caught:
        next(items)
    assert "__call__" in [one.name for one in caught.traceback], "its traceback says where"
    assert source.closed
    assert not own_threads()


@pytest.mark.parametrize("stop", ["break", "close", "error", "interrupt", "forgotten"])
def test_nothing_is_left_however_it_ends(stop: str) -> None:
    source = Counted(50)
    items: Any = prefetched(source(), 3)
    if stop == "break":
        for number in items:
            if number == 4:
                break
        del items
    elif stop in ("error", "interrupt"):
        kind = RuntimeError if stop == "error" else KeyboardInterrupt
        with pytest.raises(kind):
            _raise_within(items, kind)
        del items
    else:
        assert list(islice(items, 5)) == list(range(5))
        if stop == "close":
            items.close()
        del items
    assert source.closed
    assert source.made <= 8
    assert not own_threads()


def _raise_within(items: Any, kind: type[BaseException]) -> None:
    for number in items:
        if number == 4:
            raise kind


@pytest.mark.parametrize("options", [{}, {"pack": False}, {"hold": "memory"}], ids=str)
def test_leaving_a_first_epoch_leaves_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    part = numbered_part(500, partitions=(200, 1, 299))
    loader = Loader(part, 16, shuffle=True, cache=tmp_path, prefetch=3, **options)
    first = [row_numbers(batch) for batch in islice(loader, 5)]
    assert (loader.epoch, loader.state_dict()["step"]) == (0, 5), "what waited was not handed out"
    assert not own_threads()
    again = [row_numbers(batch) for batch in loader]
    assert again[:5] == first
    plain = Loader(part, 16, shuffle=True, cache=tmp_path / "plain", **options)
    assert again == [row_numbers(batch) for batch in plain]


def test_a_damaged_partition_is_said_in_the_loop(tmp_path: Path) -> None:
    class Failing(ArrayPart):
        def arrays(self, partition: int) -> Any:
            if partition == 1:
                raise CorruptionError("partition 1 is damaged")
            return super().arrays(partition)

    whole = numbered_part(300, partitions=(100, 100, 100))
    part = Failing(whole.schema, whole.inputs, whole.label, (100, 100, 100))
    loader = Loader(part, 10, cache=tmp_path, prefetch=2)
    with pytest.raises(CorruptionError, match="partition 1 is damaged"):
        list(loader)
    assert not own_threads()


def test_waiting_batches_are_projected_and_refused(tmp_path: Path) -> None:
    part = numbered_part(100_000, numeric=64)
    plain = Loader(part, 4096, cache=tmp_path)
    ahead = Loader(part, 4096, cache=tmp_path, prefetch=3)
    added = ahead.epoch_memory().added - plain.epoch_memory().added
    assert added == 3 * 4096 * plain.sample_bytes
    limit = plain.epoch_memory().peak + 2 * 4096 * plain.sample_bytes
    with pytest.raises(MemoryLimitError, match="an epoch is projected to take"):
        Loader(part, 4096, cache=tmp_path, prefetch=3, memory_limit=limit)


def test_a_mixture_makes_batches_ahead(tmp_path: Path) -> None:
    def mixture(prefetch: int) -> Mixture:
        loaders = [
            Loader(numbered_part(rows, name=name), 8, True, cache=tmp_path)
            for name, rows in (("a", 40), ("b", 70))
        ]
        return Mixture(loaders, prefetch=prefetch)

    expected = [row_numbers(batch) for batch in mixture(0)]
    assert [row_numbers(batch) for batch in mixture(2)] == expected
    assert not own_threads()


@pytest.mark.parametrize("prefetch", [-1, 1.5, "2"])
def test_what_is_no_number_of_batches_is_refused(tmp_path: Path, prefetch: Any) -> None:
    with pytest.raises(InvalidInputError, match="prefetch="):
        Loader(numbered_part(10), 4, cache=tmp_path, prefetch=prefetch)


@pytest.mark.parametrize("options", ["prefetch=3", "prefetch=0", "prefetch=3, pack=False"])
def test_a_process_ends_in_the_middle_of_a_first_epoch(tmp_path: Path, options: str) -> None:
    """Threads that write the pack do not go on when Python ends: nobody waits for them."""
    script = f"""
import sys
from featurestore.testing.datasets import numbered_part
from training import Loader

batches = iter(Loader(numbered_part(1000), 4, cache=sys.argv[1], {options}))
print(len(next(batches).inputs['numeric']))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", "")
