"""Any sequence of operations by several writers agrees with a model; see ``testing.table_machine``."""

from __future__ import annotations

import pytest

from featurestore.testing.table_machine import run_examples


@pytest.mark.timeout(1800)  # minutes of work: on a busy machine many
def test_half_of_the_examples() -> None:
    """The other half is in ``test_table_machine_more``, for the second core."""
    run_examples(100, 50)


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
def test_a_thousand_long_ones() -> None:
    run_examples(1000, 300)
