"""A measure that recalibration and diagnosis share."""

from __future__ import annotations

from torch import Tensor


def rms(values: Tensor) -> float:
    """Root mean square over channels."""
    return float(values.square().mean().sqrt())
