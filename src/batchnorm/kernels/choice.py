"""Which backends there are, and how to be served by another."""

from __future__ import annotations

import os
from typing import Any, Literal

from batchnorm.arguments import arguments, told
from batchnorm.errors import check
from batchnorm.kernels import native, triton

ENVIRONMENT = "BATCHNORM_BACKEND"
# An instruction set stands for the native backend with it; which of them this machine runs is known at run time.
Backend = Literal["native", "base", "avx2", "avx512", "reference"]


@arguments()
def backends() -> dict[str, str]:
    """Every backend of the four passes, with one line about its state on this machine.

    Example:
        >>> import batchnorm.kernels
        >>> list(batchnorm.kernels.backends())
        ['native', 'triton', 'torch', 'reference']

    "native" is C++ on the CPU and says which instruction set runs; "triton" is Triton on CUDA devices; "torch" is
    torch's own batch norm kernels, which serve plain layers elsewhere; "reference" is torch operations, which
    compilers and transforms see. `use` chooses.
    """
    sets = native.instruction_sets()
    if not sets:
        line = "not built: no C++ compiler was found at installation, or BATCHNORM_PURE=1 said not to"
    elif native.enabled():
        line = f"in use on the CPU with {native._native.instruction_set()}; this machine runs {', '.join(sets)}"
    else:
        line = "switched off by use('reference')"
    return {
        "native": line,
        "triton": triton.state(),
        "torch": "torch's batch norm kernels: plain layers on other devices, and inference",
        "reference": "torch operations: compilers, transforms, double backward, and whatever the others decline",
    }


def use(backend: Backend | None = None) -> None:
    """Choose the backend for this process: of the CPU, and with "reference" of CUDA devices too.

    Example:
        >>> from batchnorm import kernels
        >>> kernels.use("reference")  # torch operations only
        >>> kernels.use()  # the best there is, again

    Args:
        backend: "native", one of its instruction sets ("base", "avx2", "avx512"), "reference", or
            None for the best. The environment variable BATCHNORM_BACKEND does the same at import.

    Raises:
        BatchNormError: a backend that is not here.
    """
    sets = native.instruction_sets()
    legal = ["reference", *(["native", *sets] if sets else [])]
    check(backend is None or backend in legal, "backend", f"None or one of {', '.join(legal)}", told(backend))
    native.enable(backend != "reference")
    triton.enable(backend != "reference")
    if sets and backend != "reference":
        native._native.choose(backend if backend in sets else sets[-1])


def from_environment() -> None:
    """What the environment variable asks for; nothing where it is empty."""
    wanted: Any = os.environ.get(ENVIRONMENT)
    if wanted:
        use(wanted)
