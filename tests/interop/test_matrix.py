"""Every framework's network, carried into every other framework, computes the same there."""

import numpy as np
import pytest

from tests.interop.networks import DECAY, EPS, INPUT, NETWORKS, SETTABLE, make

# What those formats do not record.
UNSAID = {"linen": {"eps": EPS, "momentum": 1 - DECAY}, "haiku": {"eps": EPS, "momentum": 1 - DECAY}}
pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize("target", NETWORKS)
@pytest.mark.parametrize("source", NETWORKS)
def test_a_network_computes_the_same_in_the_other_framework(source, target):
    one, other = make(source, 1), make(target, 2, **({"eps": 0.1} if target in SETTABLE else {}))
    x = np.random.default_rng(3).normal(0.5, 1.5, INPUT).astype(np.float32)
    wanted, before = one.infer(x), other.infer(x)
    other.fill(one.source, **UNSAID.get(source, {}))
    assert np.abs(before - wanted).max() > 0.1
    assert np.abs(other.infer(x) - wanted).max() < 1e-5 * max(1.0, np.abs(wanted).max())
