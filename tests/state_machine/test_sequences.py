"""Random sequences of steps against plain arithmetic: a seeded tenth here, 2,000 and the slow steps by `make fuzz`."""

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.state_machine.machine import FullMachine, Machine
from tests.state_machine.truth import METHODS

# Under AddressSanitizer neither compilers nor forked processes run.
SANITIZED = "BATCHNORM_SANITIZED" in os.environ


def run(machine, method, sequences, seeded):
    run_state_machine_as_test(
        type("Chosen", (machine,), {"method": method}),
        settings=settings(
            max_examples=sequences,
            stateful_step_count=30,
            derandomize=seeded,
            database=None,
            print_blob=True,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_seeded_tenth(method):
    run(Machine, method, 200 // len(METHODS), seeded=True)


@pytest.mark.fuzz
@pytest.mark.parametrize("method", METHODS)
def test_two_thousand(method):
    run(Machine if SANITIZED else FullMachine, method, -(-2000 // len(METHODS)), seeded=False)
