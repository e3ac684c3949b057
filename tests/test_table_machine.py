"""Any sequence of operations by several writers agrees with a model; see ``testing.table_machine``."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from featurestore.testing.table_machine import TableMachine

QUICK = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


def test_half_of_the_examples() -> None:
    """The other half is in ``test_table_machine_more``, for the second core."""
    run_state_machine_as_test(TableMachine, settings=QUICK)


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
def test_a_thousand_long_ones() -> None:
    settings_ = settings(QUICK, max_examples=1000, stateful_step_count=300)
    run_state_machine_as_test(TableMachine, settings=settings_)
