"""Whether the processes of a distributed run hold the same statistics."""

from __future__ import annotations

import torch
from torch import Tensor, distributed
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.diagnosis.run.evidence import RunEvidence


def world() -> int:
    """How many processes there are."""
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


def compare_ranks(layers: dict[str, _BatchNorm], evidence: RunEvidence) -> None:
    """Gather every rank's means and note how far each layer's are apart; all ranks must call it."""
    own = torch.cat([m.running_mean.detach().float().flatten() for m in layers.values()])  # pyright: ignore
    gathered = [torch.empty_like(own) for _ in range(world())]
    distributed.all_gather(gathered, own)
    table = torch.stack(gathered)
    start = 0
    for name, m in layers.items():
        size = m.num_features
        part: Tensor = table[:, start : start + size]
        scale = (m.running_var.detach().float().clamp_min(0) + m.eps).sqrt()  # pyright: ignore
        apart = ((part.max(0).values - part.min(0).values) / scale).square().mean().sqrt()
        evidence.layers[name].rank_drift = float(apart)
        start += size
