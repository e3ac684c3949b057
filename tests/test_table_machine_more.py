"""The other half of the state machine's examples, in a file of its own: test runs share out files."""

from __future__ import annotations

from featurestore.testing.table_machine import run_examples


def test_the_other_half_of_the_examples() -> None:
    run_examples(100, 50)
