"""How far a batch lies from the running statistics, without reading the batch where that can be helped.

A stock layer computes the batch's mean and variance anyway, and moves its buffers by `gain` of the
way to them: what they moved, over the gain, is the distance. That costs a few channel vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.diagnosis.run.evidence import gain

MOST = 1 << 16  # values of an input that are read


def hold(module: _BatchNorm) -> tuple[Tensor, Tensor]:
    """The statistics before a forward."""
    return module.running_mean.detach().clone(), module.running_var.detach().clone()  # pyright: ignore


@torch.no_grad()
def moved(module: _BatchNorm, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """From what a stock layer's buffers moved in a forward: the mean's distance, the log ratio of the variances.

    The variance is the unbiased one, as it is stored.
    """
    weight = gain(module) or 1.0
    new_mean, new_var = hold(module)
    return _apart(module, (new_mean - mean) / weight, var, var + (new_var - var) / weight)


@torch.no_grad()
def sampled(module: _BatchNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """The same from a part of the samples, for layers whose buffers move by other rules, or not at all."""
    part = x[:: max(1, x.numel() // MOST)]
    part = part if part.numel() > part.shape[1] else x
    var, mean = torch.var_mean(part.transpose(0, 1).flatten(1), 1)
    running_mean, running_var = hold(module)
    return _apart(module, mean - running_mean, running_var, var)


def _apart(module: _BatchNorm, step: Tensor, var: Tensor, batch_var: Tensor) -> tuple[Tensor, Tensor]:
    scale = var.clamp_min(0) + module.eps
    return step / scale.sqrt(), ((batch_var.clamp_min(0) + module.eps) / scale).log()
