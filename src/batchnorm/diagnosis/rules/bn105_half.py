"""Statistics are float16, which overflows at 65504, or bfloat16, in which small updates are lost.

Or they are float32 and hold numbers of bfloat16 alone, of which the weights hold others: they were kept so in training.

`convert` keeps statistics float32 in a model of any type.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.layer import LayerEvidence
from batchnorm.diagnosis.rules.examples import batches, network
from batchnorm.diagnosis.rules.grounds import RECALIBRATE, by_statistics

TITLE = "half-precision statistics"
SEVERITY = "warning"
FIX = f"model.float(); {RECALIBRATE}  # batchnorm.convert(model) keeps them float32"
predicts = by_statistics


def look_at(layer: LayerEvidence) -> Said:
    """Buffers narrower than float32."""
    if layer.dtype in (torch.float16, torch.bfloat16):
        yield f"statistics are {str(layer.dtype)[6:]}: small updates round away, and float16 overflows at 65504"
    elif layer.weight is not None and not _rounded(layer.weight) and _rounded(layer.mean) and _rounded(layer.var):
        yield "all statistics are numbers of bfloat16: they were kept so, and small updates rounded away"


def _rounded(values: Tensor) -> bool:
    """Whether numbers, not all alike, lose nothing in bfloat16."""
    return bool(values.bfloat16().double().equal(values)) and bool((values != values[:1]).any())


def _of(dtype: torch.dtype) -> Example:
    return Example(network().to(dtype), [x.to(dtype) for x in batches()])


broken = partial(_of, torch.bfloat16)
healthy = partial(_of, torch.float64)
