"""Does a device's batch norm compute batch norm? Its outputs, gradients and statistics against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from batchnorm.arguments import a_device_with_values, a_floating_dtype, a_function, arguments, several_of
from batchnorm.kernels.shapes import per_channel

SHAPE = (16, 8, 14, 14)
MEANS = (0.0, 1e4)
# Correct kernels stay below 20 of these units, long float32 sums included; what is wrong is off by hundreds.
ALLOWED = 50.0
_EPS, _MOMENTUM = 1e-3, 0.3


class Check(NamedTuple):
    """One comparison: error is the largest difference, in units of what rounding explains."""

    mode: str
    dtype: str
    layout: str
    mean: float
    what: str
    error: float

    @property
    def ok(self) -> bool:
        """Whether rounding explains it (NaN is not)."""
        return self.error <= ALLOWED

    def __str__(self) -> str:
        case = f"{self.mode}, {self.dtype}, {self.layout}, mean {self.mean:g}, {self.what}"
        return f"{case}: {self.error:.3g} times what rounding explains"


@dataclass(frozen=True)
class Parity:
    """What `verify` found on a device: a row a comparison, the worst first."""

    device: str
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The comparisons that rounding does not explain."""
        return tuple(row for row in self.checks if not row.ok)

    @property
    def ok(self) -> bool:
        """Whether every comparison is explained by rounding."""
        return not self.failed

    def __str__(self) -> str:
        head = f"batch norm on {self.device}: {len(self.failed)} of {len(self.checks)} comparisons are off"
        return "\n".join([head, *map(str, self.failed)])


@arguments(device=a_device_with_values, batch_norm=a_function, dtypes=several_of(a_floating_dtype))
def verify(
    device: torch.device | str = "cpu",
    batch_norm: Callable[..., Tensor] = functional.batch_norm,
    dtypes: tuple[torch.dtype, ...] = (torch.float32,),
) -> Parity:
    """Compare a device's batch norm with float64: outputs, gradients and statistics, in train and eval mode.

    Example:
        >>> import torch, batchnorm.kernels
        >>> def forgets_eps(x, mean, var, weight, bias, training, momentum, eps):
        ...     return torch.nn.functional.batch_norm(x, mean, var, weight, bias, training, momentum, 1e-12)
        >>> batchnorm.kernels.verify("cpu", forgets_eps).ok
        False

    For a new backend, driver or port. The two layouts are contiguous and channels_last, the inputs
    have mean 0 and a mean of 10,000 standard deviations, at which a kernel that takes the difference
    of E[x^2] and E[x]^2 loses its digits.

    Args:
        device: where it runs; the reference runs on the CPU.
        batch_norm: a function with the signature of `torch.nn.functional.batch_norm`.
        dtypes: of the input; weight, bias and statistics are float32, or float64 with it.

    Raises:
        BatchNormError: a dtype that is not floating point. What the device raises is not caught.
    """
    rows = [
        row
        for dtype in dtypes
        for mean in MEANS
        for layout in (torch.contiguous_format, torch.channels_last)
        for training in (True, False)
        for row in _compare(torch.device(device), batch_norm, dtype, mean, layout, training)
    ]
    return Parity(
        str(device), tuple(sorted(rows, key=lambda row: -row.error if row.error == row.error else -torch.inf))
    )


def _compare(
    device: torch.device,
    batch_norm: Callable[..., Tensor],
    dtype: torch.dtype,
    mean: float,
    layout: torch.memory_format,
    training: bool,
) -> Iterator[Check]:
    generator = torch.Generator().manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    channels = SHAPE[1]
    x = (torch.randn(SHAPE, generator=generator) + mean).to(dtype).contiguous(memory_format=layout)
    g = torch.randn(SHAPE, generator=generator).to(dtype).contiguous(memory_format=layout)
    weight, bias = torch.rand(channels, generator=generator) + 0.5, torch.randn(channels, generator=generator)
    running_mean = torch.randn(channels, generator=generator) + mean
    running_var = torch.rand(channels, generator=generator) + 0.5
    vectors = [vector.to(wide) for vector in (weight, bias, running_mean, running_var)]
    theirs = _run(batch_norm, [t.to(device) for t in (x, g, *vectors)], training)
    truth = _run(_exactly, [t.double() for t in (x, g, *vectors)], training)
    # What rounds: the input's digits once, or the statistics' where the mean is far away.
    unit = torch.finfo(dtype).eps
    far = 1 + mean * torch.finfo(wide).eps / unit
    mode, name = "train" if training else "eval", str(dtype).removeprefix("torch.")
    at = "contiguous" if layout == torch.contiguous_format else "channels_last"
    for what, exact in truth.items():
        scale = exact.abs().max().clamp_min(1.0) * far * unit
        error = (theirs[what].cpu().double() - exact).abs().max() / scale
        yield Check(mode, name, at, mean, what, float(error))


def _run(batch_norm: Callable[..., Tensor], tensors: list[Tensor], training: bool) -> dict[str, Tensor]:
    x, g, weight, bias, running_mean, running_var = tensors
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    running_mean, running_var = running_mean.clone(), running_var.clone()
    y = batch_norm(leaves[0], running_mean, running_var, leaves[1], leaves[2], training, _MOMENTUM, _EPS)
    y.backward(g)
    names = "gradient of the input", "gradient of weight", "gradient of bias"
    grads: Any = {name: leaf.grad for name, leaf in zip(names, leaves, strict=True)}
    return {"output": y.detach(), **grads, "running mean": running_mean, "running variance": running_var}


def _exactly(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """The definition, in float64."""
    mean, var = running_mean.clone(), running_var.clone()
    if training:
        axes = (0, *range(2, x.dim()))
        mean, var = x.mean(axes), x.var(axes, correction=0)
        n = x.numel() // x.shape[1]
        running_mean.lerp_(mean.detach(), momentum)
        running_var.lerp_(var.detach() * n / (n - 1), momentum)
    normal = (x - per_channel(mean, x)) * per_channel((var + eps).rsqrt(), x)
    return normal * per_channel(weight, x) + per_channel(bias, x)
