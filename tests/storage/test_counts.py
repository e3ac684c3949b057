"""Counts by name: mappings like dictionaries, whose names are kept once."""

from __future__ import annotations

import pickle
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.storage import counts
from featurestore.storage.counts import Counts

NUMBERS = st.one_of(
    st.integers(0, 300), st.integers(2**16 - 2, 2**16 + 2), st.integers(-(2**63), 2**63 - 1)
)


@given(st.dictionaries(st.text("abé ", max_size=3), NUMBERS, max_size=6))
def test_they_are_the_dictionary_they_were_made_of(given: dict[str, int]) -> None:
    found = Counts(given)
    assert found == given
    assert given == found
    assert list(found.items()) == list(given.items())
    assert len(found) == len(given)
    assert all(name in found for name in given)
    assert found == Counts(found) == pickle.loads(pickle.dumps(found))
    assert repr(found) == repr(given)


def test_names_in_another_order_stay_in_that_order() -> None:
    one, two = Counts({"a": 1, "b": 2}), Counts({"b": 2, "a": 1})
    assert one == two
    assert list(one) == ["a", "b"]
    assert list(two) == ["b", "a"]


def test_what_is_not_there_is_missing() -> None:
    found = Counts({"a": 1})
    assert "b" not in found
    assert found.get("b", 7) == 7
    with pytest.raises(KeyError):
        found["b"]


def test_a_number_that_no_file_can_hold_is_refused() -> None:
    with pytest.raises(OverflowError):
        Counts({"a": 2**63})


def test_names_are_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "_REMEMBERED", 3)
    monkeypatch.setattr(counts, "_known", {})
    kept = [Counts({f"only here {number}": number}) for number in range(10)]
    assert len(counts._known) <= 3
    assert [one[f"only here {number}"] for number, one in enumerate(kept)] == list(range(10))


def test_the_names_of_many_are_kept_once() -> None:
    """Of the next thousand alike, each takes its values and little else."""
    Counts({f"a column of some name {at}": at for at in range(250)})
    tracemalloc.start()
    kept = [Counts({f"a column of some name {at}": 0 for at in range(250)}) for _ in range(1000)]
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held <= len(kept) * (250 + 200)
