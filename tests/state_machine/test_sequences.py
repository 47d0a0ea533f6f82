"""Random sequences of steps against plain arithmetic: a seeded tenth here, 2,000 by `make fuzz`."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.state_machine.machine import FullMachine, Machine
from tests.state_machine.truth import METHODS


def run(machine, method, sequences, seeded):
    chosen = type("Chosen", (machine,), {"method": method})
    run_state_machine_as_test(
        chosen,
        settings=settings(
            max_examples=sequences,
            stateful_step_count=30,
            derandomize=seeded,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_seeded_tenth(method):
    run(Machine, method, 200 // len(METHODS), seeded=True)
