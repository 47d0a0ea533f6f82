"""The pool of output memory that 0.1 had: gone, and these names with the next version. See `kernels.keep_memory`."""

from __future__ import annotations

import os
import warnings

_GONE = "does nothing: outputs come from torch's allocator; batchnorm.kernels.keep_memory() tells glibc to keep memory"


def keep_idle(limit: int) -> None:
    """Deprecated: there is no pool, so nothing to limit."""
    warnings.warn(f"keep_idle {_GONE}", DeprecationWarning, stacklevel=2)


def idle() -> int:
    """Deprecated: 0."""
    warnings.warn(f"idle {_GONE}", DeprecationWarning, stacklevel=2)
    return 0


def from_environment() -> None:
    """Say that the variable of the pool does nothing, where it is set."""
    if "BATCHNORM_IDLE_BYTES" in os.environ:
        warnings.warn(f"BATCHNORM_IDLE_BYTES {_GONE}", DeprecationWarning, stacklevel=2)
