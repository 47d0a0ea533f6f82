"""Cross-Iteration Batch Normalization: past batches count too, carried along with the weights' change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from batchnorm.arguments import BATCHES, STEPS, a_flag, arguments
from batchnorm.kernels import compute_dtype
from batchnorm.layers.choices.couplings import Coupling
from batchnorm.layers.choices.situation import Now, State
from batchnorm.layers.moments import Moments
from batchnorm.layers.rule import Numbers, Vectors

_RINGS = ("past_mean", "past_square", "past_mean_slope", "past_square_slope", "past_weight")


def look_back(x: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """The slopes of each channel's mean and mean square over the weights that made it, and the weights.

    Channel i depends on filter i alone, so one derivative of the sum over channels holds them all.
    Zero where x has no graph: then the weights are fixed.
    """
    slopes = [torch.zeros_like(weight), torch.zeros_like(weight)]
    if x.requires_grad and weight.requires_grad:
        wide = x.to(compute_dtype(x))
        axes = (0, *range(2, x.dim()))
        for i, value in enumerate((wide.mean(axes).sum(), wide.square().mean(axes).sum())):
            (found,) = torch.autograd.grad(value, weight, retain_graph=True, allow_unused=True)
            if found is not None:
                slopes[i] = found
    return {"mean_slope": slopes[0], "square_slope": slopes[1], "weight": weight.detach().clone(), "live": weight}


@arguments(window=BATCHES, burn_in=STEPS, through_weights=a_flag)
@dataclass(frozen=True)
class CrossIteration(Coupling):
    """Normalise with the last `window` batches, their moments corrected to the current weights (first order).

    Example:
        >>> import torch, batchnorm
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        >>> _ = batchnorm.convert(net, "cbn")(torch.randn(2, 3, 8, 8))

    Needs the convolution or linear layer before it: `batchnorm.convert` finds it, `layer.attach`
    gives it. The gradient flows through the present batch, whose share is 1 / window, and through the
    past moments to the weights they were carried to. The running statistics are fed by the present batch.

    Args:
        window: how many batches, the present one included.
        burn_in: steps that are plain batch norm.
        through_weights: False treats the past moments as constants, as the released code does; the
            weights then feel 1 / window of what normalisation takes out of their gradient.

    Raises:
        BatchNormError: window below 1, burn_in below 0.

    Source: Yao et al., "Cross-Iteration Batch Normalization" (2021).
    """

    window: int = 4
    burn_in: int = 8
    through_weights: bool = True

    counts_batches = True
    looks_back = True

    def refuses(self, recipe: Any) -> str | None:
        """The slopes are those of whole batches."""
        if recipe.extent.requires is not None:
            return "cross-iteration needs the slopes of whole batches over the weights: no mask and no sample weights"
        if recipe.extent.splits:
            return "cross-iteration needs the slopes of whole batches over the weights: no ghost groups"
        return None

    def memory_before(self, state: State, weight: Tensor) -> dict[str, Tensor]:
        """The past moments, their slopes and the weights they were taken at."""
        k = self.window - 1
        vector = torch.zeros((k, state.mean.shape[-1]), dtype=state.mean.dtype, device=state.mean.device)
        filters = torch.zeros((k, *weight.shape), dtype=state.mean.dtype, device=state.mean.device)
        rings = dict(zip(_RINGS, (vector, vector.clone(), filters, filters.clone(), filters.clone()), strict=True))
        return {**rings, "past_seen": torch.zeros(1, dtype=torch.long, device=state.mean.device)}

    def plan(self, state: State, now: Now) -> tuple[Numbers, Vectors]:
        """The mean over the window of mean and E[x^2], the variance never below that of the means."""
        if self.window == 1 or now.before is None:
            return Numbers(), Vectors()
        memory = state.memory
        weight = now.before["live" if self.through_weights else "weight"]
        moved = weight.to(memory["past_weight"].dtype) - memory["past_weight"]
        filled = torch.arange(self.window - 1, device=moved.device) < memory["past_seen"]
        filled = (filled & (now.step > self.burn_in))[:, None]
        means = memory["past_mean"] + (memory["past_mean_slope"] * moved).flatten(2).sum(2)
        squares = memory["past_square"] + (memory["past_square_slope"] * moved).flatten(2).sum(2)
        count = filled.sum(0).to(means.dtype)
        mean = torch.where(filled, means, 0.0).sum(0) / count.clamp_min(1)
        spread = torch.relu(squares - means.square()) + (means - mean).square()
        share = 1 / (1 + count)
        return Numbers(share, share, 1 - share), Vectors(mean, rest=share * torch.where(filled, spread, 0.0).sum(0))

    def remember(self, state: State, now: Now, batch: Moments) -> dict[str, Any]:
        """Keep the batch's moments, their slopes and the weights."""
        if self.window == 1 or now.before is None:
            return {}
        square, before = batch.var(0) + batch.mean.square(), now.before
        values = (batch.mean, square, before["mean_slope"], before["square_slope"], before["weight"])
        return state.pushed("past_seen", now, dict(zip(_RINGS, values, strict=True)))
