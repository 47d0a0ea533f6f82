"""Random sequences of steps against plain arithmetic: 200 in the slow suite, 2,000 and slow steps by `make fuzz`."""

import os

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.fuzzing import WHOLE, chosen
from tests.state_machine.machine import FullMachine, Machine
from tests.state_machine.truth import METHODS

# Under AddressSanitizer neither compilers nor forked processes run.
SANITIZED = "BATCHNORM_SANITIZED" in os.environ


@pytest.mark.fuzz
@pytest.mark.parametrize("method", METHODS)
def test_sequences(method):
    machine = FullMachine if WHOLE and not SANITIZED else Machine
    few = settings(chosen(-(-2000 // len(METHODS))), stateful_step_count=30, database=None, print_blob=True)
    run_state_machine_as_test(type("Chosen", (machine,), {"method": method}), settings=few)
