"""Whether the processes of a distributed run hold the same statistics."""

from __future__ import annotations

import torch
from torch import Tensor, distributed
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.diagnosis.run.evidence import LayerRun, RunEvidence


def world() -> int:
    """How many processes there are."""
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


def compare_ranks(layers: dict[str, _BatchNorm], evidence: RunEvidence) -> None:
    """Gather every rank's means and smoothed shifts and note how far each layer's are apart; all ranks must call it.

    The means alone do not tell that ranks see different data where rank 0's buffers are broadcast before each forward.
    """
    own = torch.cat([_numbers(m, evidence.layers[name]) for name, m in layers.items()])
    gathered = [torch.empty_like(own) for _ in range(world())]
    distributed.all_gather(gathered, own)
    table = torch.stack(gathered)
    start = 0
    for name, m in layers.items():
        layer, size = evidence.layers[name], m.num_features
        means, shifts, errors = table[:, start : start + 3 * size].split(size, 1)
        scale = (m.running_var.detach().float().clamp_min(0) + m.eps).sqrt()  # pyright: ignore
        layer.rank_drift = float((_range(means) / scale).square().mean().sqrt())
        layer.rank_shift = float(_range(shifts).square().mean().sqrt())
        layer.rank_shift_error = float(2 * errors.max(0).values.mean().sqrt())
        start += 3 * size


def _range(table: Tensor) -> Tensor:
    return table.max(0).values - table.min(0).values


def _numbers(module: _BatchNorm, layer: LayerRun) -> Tensor:
    """The running mean, the smoothed shift and its squared error, a rank's own, in the buffers' place."""
    mean = module.running_mean.detach().float().flatten()  # pyright: ignore
    if layer.shift is None or layer.square is None:
        return torch.cat([mean, torch.zeros_like(mean), torch.zeros_like(mean)])
    return torch.cat([mean, layer.shift.to(mean), layer.squared_error().to(mean)])
