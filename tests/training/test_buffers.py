"""Memory of batches that is used again: never while anybody can read it."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.loading.buffers import ALIGNMENT, Buffers, aligned_empty

F4 = np.dtype("float32")
LARGE = (512, 64)


def address(array: np.ndarray[Any, Any]) -> int:
    return int(array.ctypes.data)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (5, 0, 2), LARGE])
@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "float16"])
def test_arrays_are_aligned_plain_and_whole(shape: tuple[int, ...], dtype: str) -> None:
    buffers = Buffers()
    with buffers.used():
        for made in (buffers.empty(shape, np.dtype(dtype)), aligned_empty(shape, np.dtype(dtype))):
            assert type(made) is np.ndarray
            assert (made.shape, made.dtype) == (shape, np.dtype(dtype))
            assert made.flags.c_contiguous
            assert made.flags.writeable
            assert address(made) % ALIGNMENT == 0 or not made.size
            made[...] = 1


@given(
    st.lists(
        st.tuples(st.sampled_from(["new", "view", "drop", "copy", "cycle"]), st.integers(0, 9)),
        max_size=60,
    )
)
def test_what_somebody_holds_keeps_its_values(operations: list[tuple[str, int]]) -> None:
    buffers = Buffers()
    held: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []

    def hold(array: np.ndarray[Any, Any]) -> None:
        held.append((array, array.copy()))

    with buffers.used():
        for number, (operation, which) in enumerate(operations):
            if operation == "new":
                made = buffers.empty((256 + 256 * (which % 2), 64), F4)
                made[...] = number
                hold(made)
            elif held:
                array = held[which % len(held)][0]
                if operation == "view":
                    hold(array[::2].T.reshape(-1)[1:] if which % 2 else array[1:2])
                elif operation == "copy":
                    hold(np.asarray(memoryview(array)))
                elif operation == "drop":
                    del held[which % len(held)]
                else:
                    loop: list[Any] = [array]
                    loop.append(loop)
                    del held[which % len(held)], loop, array
                    gc.collect(0)
            array = made = None  # type: ignore[assignment]
            for kept, expected in held:
                assert np.array_equal(kept, expected)


def test_memory_is_used_again_once_nobody_has_it() -> None:
    buffers = Buffers()
    with buffers.used():
        first = buffers.empty(LARGE, F4)
        where, view = address(first), first[3:4].view(np.uint8)
        del first
        assert address(buffers.empty(LARGE, F4)) != where
        del view
        assert address(buffers.empty(LARGE, F4)) == where


@pytest.mark.parametrize("steps", range(6))
def test_who_keeps_what_an_array_is_a_view_of_keeps_its_values(steps: int) -> None:
    buffers = Buffers()
    with buffers.used():
        kept: Any = buffers.empty(LARGE, F4)
        kept[...] = 1
        for _ in range(steps):  # as far down as there are arrays, and one further
            if getattr(kept, "base", None) is not None:
                kept = kept.base
        before = np.asarray(kept).tobytes()
        other = buffers.empty(LARGE, F4)
        other[...] = 2
        assert np.asarray(kept).tobytes() == before


def test_a_size_has_memory_of_its_own() -> None:
    buffers = Buffers()
    with buffers.used():
        for _ in range(3):
            for rows in (512, 513, 1024):
                made = buffers.empty((rows, 64), F4)
                made[...] = rows
                assert made.nbytes == rows * 256


def test_nothing_stays_after_the_last_pass() -> None:
    buffers = Buffers()
    with buffers.used():
        with buffers.used():
            owner = weakref.ref(buffers.empty(LARGE, F4).base)
            assert owner() is None  # it was given back: only its block is kept
        where = address(buffers.empty(LARGE, F4))
        assert address(buffers.empty(LARGE, F4)) == where
        late = buffers.empty(LARGE, F4)
    assert not buffers._free
    del late
    assert not buffers._free
    assert not buffers._lent


def test_arrays_outlive_what_gave_them() -> None:
    buffers = Buffers()
    with buffers.used():
        made = buffers.empty(LARGE, F4)
    made[...] = 7
    gone = weakref.ref(buffers)
    del buffers
    assert gone() is None
    assert bool((made == 7).all())
    del made


def test_so_many_wait_at_most() -> None:
    buffers = Buffers()
    with buffers.used():
        held = [buffers.empty(LARGE, F4) for _ in range(50)]
        assert len({address(one) for one in held}) == 50
        held.clear()
        (waiting,) = buffers._free.values()
        assert len(waiting) == waiting.maxlen


def test_several_threads_never_have_the_same_memory() -> None:
    buffers, wrong = Buffers(), list[int]()

    def work(number: int) -> None:
        held: list[np.ndarray[Any, Any]] = []
        for turn in range(300):
            made = buffers.empty(LARGE, F4)
            made[...] = number * 1000 + turn
            held.append(made)
            if len(held) == 3:
                first = held.pop(0)
                if not bool((first == number * 1000 + turn - 2).all()):
                    wrong.append(number)

    with buffers.used():
        threads = [threading.Thread(target=work, args=(one,)) for one in range(4)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
    assert wrong == []
