"""The other half of the state machine's examples, in a file of its own: test runs share out files."""

from __future__ import annotations

import pytest

from featurestore.testing.table_machine import run_examples


@pytest.mark.timeout(1800)  # minutes of work: on a busy machine many
def test_the_other_half_of_the_examples() -> None:
    run_examples(100, 50)
