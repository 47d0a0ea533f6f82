"""Random layers and batches, hostile ones included: the package, natively and in torch, against the model."""

import os

import pytest

from tests.fuzzing import WHOLE
from tests.model.runs import differences

WHOLE_CASES = 20_000
# A case takes about 60 ms: a small share by default, a tenth in the slow suite, all of them by `make fuzz`.
SHARE = range(100)
TENTH = range(100, 100 + WHOLE_CASES // 10)
FIRST = int(os.environ.get("BATCHNORM_FUZZ_FIRST", "1000000"))
CHUNK = 250


def assert_no_differences(seeds):
    found = [difference for seed in seeds for difference in differences(seed)]
    assert not found, "\n".join(map(str, found[:20]))


@pytest.mark.parametrize("part", range(4))
def test_a_small_share(part):
    assert_no_differences(SHARE[part::4])


@pytest.mark.slow
@pytest.mark.parametrize("start", range(TENTH.start, TENTH.stop, CHUNK))
def test_a_tenth(start):
    assert_no_differences(range(start, start + CHUNK))


@pytest.mark.fuzz
@pytest.mark.skipif(not WHOLE, reason="make fuzz runs all of them")
@pytest.mark.parametrize("start", range(0, WHOLE_CASES, CHUNK))
def test_all(start):
    assert_no_differences(range(FIRST + start, FIRST + start + CHUNK))
