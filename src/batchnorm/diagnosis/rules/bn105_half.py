"""Statistics are float16, which overflows at 65504, or bfloat16, in which small updates are lost.

`convert` keeps statistics float32 in a model of any type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.rules.examples import batches, network
from batchnorm.diagnosis.rules.grounds import RECALIBRATE, by_statistics

if TYPE_CHECKING:
    from batchnorm.diagnosis.model.evidence import Evidence

CODES = {"model": "BN105"}
TITLE = "half-precision statistics"
SEVERITY = "warning"
FIX = f"model.float(); {RECALIBRATE}  # batchnorm.convert(model) keeps them float32"
predicts = by_statistics


def look(e: Evidence) -> Said:
    """Buffers narrower than float32."""
    for layer in e.layers.values():
        if layer.dtype in (torch.float16, torch.bfloat16):
            yield (
                layer.name,
                f"statistics are {str(layer.dtype)[6:]}: small updates round away, and float16 overflows at 65504",
            )


def broken() -> Example:
    """A whole model in bfloat16."""
    return Example(network().bfloat16(), [x.bfloat16() for x in batches()])


def healthy() -> Example:
    """In float64."""
    return Example(network().double(), [x.double() for x in batches()])
