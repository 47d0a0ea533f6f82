"""Online Normalization: every sample meets the statistics of the samples before it, backwards too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from batchnorm.arguments import DECAY, a_flag, arguments, number, or_none
from batchnorm.errors import BatchNormError
from batchnorm.kernels.recurrence import before, recurrence
from batchnorm.kernels.shapes import NARROW
from batchnorm.layers.choices.couplings import Coupling
from batchnorm.layers.choices.situation import Now, State
from batchnorm.layers.rule import STORED, Numbers, Pull, Sums, Vectors


@arguments(backward_decay=DECAY, clamp=or_none(number("positive or None", lambda v: v > 0)), layer_scaling=a_flag)
@dataclass(frozen=True)
class OnlineNorm(Coupling):
    """Normalise each sample with the statistics of those before it; two controllers correct the gradient.

    Example:
        >>> import torch, batchnorm
        >>> layer = batchnorm.BatchNorm2d(3, method="online")
        >>> layer(torch.randn(1, 3, 4, 4)).shape
        torch.Size([1, 3, 4, 4])

    Works at batch size 1, and how a stream of samples is cut into batches does not change a bit of
    the result. The statistics move sample by sample (`Ghost(1, update="sequential")` with
    `EMA(0.999, total=True, correction=0)`), the controllers at every backward pass, in the order of
    the samples.

    Args:
        backward_decay: of the controllers' memory.
        clamp: outputs are held within this many units; None does not.
        layer_scaling: divide each sample's output by its root mean square over channels and
            positions, as in the paper; the released code clamps instead.

    Raises:
        BatchNormError: backward_decay outside [0, 1), a clamp that is not positive, both clamp and
            layer_scaling.

    Source: Chiley et al., "Online Normalization for Training Neural Networks" (2019), equations 8 to 11.
    """

    backward_decay: float = 0.99
    clamp: float | None = 5.0
    layer_scaling: bool = False

    exact = False
    takes_one_value = True

    def __post_init__(self) -> None:
        if self.clamp is not None and self.layer_scaling:
            raise BatchNormError(f"give clamp or layer_scaling, not both; clamp was {self.clamp}: use clamp=None")

    def refuses(self, recipe: Any) -> str | None:
        """Only a stream of single samples has an order."""
        if not (recipe.extent.sequential and recipe.extent.groups(7) == 7):
            return "online normalization needs extent=Ghost(1, update='sequential')"
        return None

    def memory(self, state: State, trained: Tensor) -> dict[str, Tensor]:
        """The two controllers."""
        return {"backward_u": torch.zeros_like(state.mean)[None], "backward_v": torch.zeros_like(state.mean)[None]}

    def plan(self, state: State, now: Now) -> tuple[Numbers, Vectors]:
        """The statistics before each sample, constants to the gradient."""
        return STORED, Vectors(state.mean, rest=state.var)

    def pull(self, state: State, now: Now, numbers: Numbers, sums: Sums | None) -> Pull | None:
        """What the controllers hold when each sample's gradient comes."""
        if sums is None:
            return None
        rest = 1 - self.backward_decay
        u, v = (state.memory[f"backward_{name}"][0] for name in "uv")
        mean_g, mean_gx = sums.mean_g, sums.mean_gx
        # A sample with a gradient that is not finite in some channel leaves both controllers as they are.
        usable = sums.some & torch.isfinite(mean_g) & torch.isfinite(mean_gx)
        usable = usable.all(-1, keepdim=True).expand_as(mean_gx)
        vs = recurrence(torch.where(usable, mean_gx, 0.0), torch.where(usable, 1 - rest * sums.y2, 1.0), v)
        held_v = rest * before(vs, v)
        into = (mean_g - held_v * sums.y1) * sums.invstd
        kept = torch.where(usable, u.new_tensor(self.backward_decay), 1.0)
        us = recurrence(torch.where(usable, into, 0.0), kept, u)
        return Pull(base_u=rest * before(us, u), base_v=held_v, kept=(us[-1:], vs[-1:]))

    def learn(self, state: State, now: Now, numbers: Numbers, sums: Sums, pull: Pull) -> dict[str, Any]:
        """The controllers after the last sample."""
        return dict(zip(("backward_u", "backward_v"), pull.kept, strict=True))

    def finish(self, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """Hold the output where small errors of the statistics cannot grow from layer to layer."""
        if self.clamp is not None:
            return y.clamp(-self.clamp, self.clamp)
        if self.layer_scaling:
            axes = tuple(range(1, y.dim()))
            square = (y.float().square() if y.dtype in NARROW else y.square()).sum(axes, True)
            if weight is None:
                count = y.shape[1:].numel()
            else:
                # Padding is 0 in y and is no position to average over.
                count = ((weight != 0).expand(y.shape[0], 1, *y.shape[2:]).sum(axes, True) * y.shape[1]).clamp_min(1)
            scaled = y * torch.rsqrt(square / count + 1e-5).to(y.dtype)
            # A sample that is not finite must not reach its padding as 0 * NaN.
            return scaled if weight is None else torch.where(weight != 0, scaled, 0)
        return y

    @property
    def finishes(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Clamp or layer scaling."""
        if self.clamp is not None:
            return "an activation clamp"
        return "layer scaling" if self.layer_scaling else None
