"""The other half of the state machine's examples, in a file of its own: test runs share out files."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from featurestore.testing.table_machine import TableMachine


def test_the_other_half_of_the_examples() -> None:
    run_state_machine_as_test(
        TableMachine,
        settings=settings(
            max_examples=100,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
