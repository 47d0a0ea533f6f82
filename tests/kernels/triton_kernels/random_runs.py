"""The random cases of tests/model through Triton's kernels, in float64 and a narrower dtype."""

import contextlib
import traceback

from tests.kernels.triton_kernels.interpreting import interpreted
from tests.model import package, runs


@contextlib.contextmanager
def _served_by(backend):
    with interpreted():
        yield


def differences(seed):
    """Where a case's layer differs from the model, or the error it raised, by lines."""
    before = package.served_by, runs.BACKENDS
    package.served_by, runs.BACKENDS = _served_by, ("triton",)
    try:
        return [str(difference) for difference in runs.differences(seed)]
    except Exception:
        return [f"seed {seed}: {traceback.format_exc()}"]
    finally:
        package.served_by, runs.BACKENDS = before
