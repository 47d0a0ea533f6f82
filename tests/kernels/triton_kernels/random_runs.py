"""The random cases of tests/model through Triton's kernels, in float64 and a narrower dtype, cut in many ways."""

import contextlib
import random
import traceback
from unittest import mock

from batchnorm.kernels.triton import geometry
from tests.kernels.triton_kernels.interpreting import interpreted
from tests.model import package, runs
from tests.model.cases import draw


@contextlib.contextmanager
def _served_by(backend):
    with interpreted():
        yield


def drawn(seed):
    """The case; of fewer channels where each is a program, which takes the interpreter milliseconds."""
    case = draw(seed)
    return case if case.channels_last else case._replace(channels=min(case.channels, 5))


def sizes(seed):
    """How the work is cut: as it is, or into so small pieces that the batches of these cases are many."""
    r = random.Random(-1 - seed)
    tile = 1024 if r.random() < 0.25 else 64 if drawn(seed).sizes == (60,) else 16
    return geometry.Sizes(
        tile, r.choice((64, 4)), r.choice((1, 2)), r.choice((4, 8, 1024)), r.choice((2, 512)), r.choice((4, 1024)),
        r.choice((0, 2, 8, 64)),
    )  # fmt: skip


def differences(seed):
    """Where a case's layer differs from the model, or the error it raised, by lines."""
    with (
        mock.patch.object(package, "served_by", _served_by),
        mock.patch.object(runs, "BACKENDS", ("triton",)),
        mock.patch.object(runs, "draw", drawn),
        mock.patch.object(geometry, "SIZES", sizes(seed)),
    ):
        try:
            return [str(difference) for difference in runs.differences(seed)]
        except Exception:
            return [f"seed {seed}: {sizes(seed)}: {traceback.format_exc()}"]
