"""How evaluation inputs differ from the training inputs: scale and offset, contrast, noise, blur, size, or classes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from batchnorm.models.batches import tensors

ROWS = 1024  # samples that are kept
SIDE = 16  # positions an axis
WIDE = 1024  # features of a row
SHIFT = 0.25  # standard deviations
SCALE = 0.25  # log ratio of the standard deviations
ROUGH = 0.3  # log ratio of roughness
BENT = 0.04  # of the range, between a curve of quantiles and the line that fits it best
NOTHING = 0.02  # standard deviations: an offset that is not said
SURE = 4.0  # standard errors
CLASSES = 0.15  # total variation between the predicted classes


@dataclass
class Sample:
    """Rows of the model's own input at a grid of positions, each sample's roughness, and its predicted class."""

    rows: list[Tensor] = field(default_factory=list)
    rough: list[Tensor] = field(default_factory=list)
    classes: list[Tensor] = field(default_factory=list)
    shape: tuple[int, ...] | None = None
    channels: int = 1
    count: int = 0
    stride: int = 1

    def add(self, batch: Any, output: Tensor | None) -> None:
        """One batch; where there is no more room, of all batches so far every second sample is kept."""
        x = next(tensors(batch), None)
        if x is None or not x.is_floating_point() or x.dim() < 2 or not x.shape[0]:
            return
        labelled = output is not None and output.dim() == 2 and output.shape[0] == x.shape[0] and output.shape[1] > 1
        found = output.argmax(1)[:: self.stride].cpu() if labelled and output is not None else None
        x = x.detach()[:: self.stride].float()
        self.shape = tuple(x.shape[1:])
        self.channels = x.shape[1] if x.dim() > 2 else 1
        grid = x
        for axis in range(2, x.dim()):
            size = x.shape[axis]
            pick = torch.linspace(0, size - 1, min(SIDE, size)).round().long()
            grid = grid.index_select(axis, pick.to(x.device))
        flat = grid.flatten(1)
        self.rows.append(flat[:, :WIDE].cpu())
        if x.dim() > 2:
            self.rough.append(_roughness(x).cpu())
        if found is not None:
            self.classes.append(found)
        self.count += x.shape[0]
        if self.count > 2 * ROWS:
            self.stride *= 2
            for name in ("rows", "rough", "classes"):
                kept = getattr(self, name)
                setattr(self, name, [torch.cat(kept)[::2]] if kept else [])
            self.count = len(self.rows[0])

    @property
    def table(self) -> Tensor:
        """All rows."""
        return torch.cat(self.rows).double()


def _roughness(x: Tensor) -> Tensor:
    """Per sample the log of the mean squared step between neighbours over the variance within the sample."""
    steps = x.new_zeros(x.shape[0])
    for axis in range(2, x.dim()):
        if x.shape[axis] > 1:
            steps = steps + x.diff(dim=axis).square().flatten(1).mean(1)
    spread = x.flatten(2).var(2, correction=0).mean(1)
    return ((steps + 1e-12) / (spread + 1e-12)).log()


@dataclass(frozen=True)
class Difference:
    """What differs, in words; nothing where nothing does. line is `(a, b)` of a x + b."""

    words: str = ""
    line: tuple[float, float] | None = None
    shift: float = 0.0
    by_class: bool = False


def difference(training: Sample, evaluation: Sample) -> Difference:
    """Compare the two."""
    if training.shape is None or evaluation.shape is None or not training.rows or not evaluation.rows:
        return Difference()
    if training.shape[0] != evaluation.shape[0] or len(training.shape) != len(evaluation.shape):
        return Difference()
    if training.shape[1:] != evaluation.shape[1:] and len(training.shape) == 3:
        sizes = " x ".join(map(str, evaluation.shape[1:])), " x ".join(map(str, training.shape[1:]))
        return Difference(f"evaluation inputs are {sizes[0]}, training inputs {sizes[1]}", shift=math.inf)
    a, b = training.table, evaluation.table
    if a.shape[1] != b.shape[1] or len(a) < 8 or len(b) < 8:
        return Difference()
    return _compare(a, b, training, evaluation)


def _compare(a: Tensor, b: Tensor, training: Sample, evaluation: Sample) -> Difference:
    live = (a.std(0) > 1e-9) | (b.std(0) > 1e-9)
    if not bool(live.any()):
        return Difference()
    a, b = a[:, live], b[:, live]
    mean_a, mean_b = a.mean(0), b.mean(0)
    std = a.std(0).square().mean().sqrt().clamp_min(1e-12)
    noise = (a.var(0) / len(a) + b.var(0) / len(b)) / std.square()
    moved = ((mean_b - mean_a) / std).square()
    excess = float((moved - noise).mean())
    error = float((noise.square().sum() * 2).sqrt() / len(noise))
    shift = math.sqrt(max(excess, 0.0)) if excess > SURE * error else 0.0
    scale, scale_error = _log_scale(a, b)
    rough, rough_error = _log_rough(training, evaluation)
    differs = shift > SHIFT
    differs |= abs(scale) > max(SCALE, SURE * scale_error)
    differs |= abs(rough) > max(ROUGH, SURE * rough_error)
    if not differs:
        return Difference(shift=shift)
    if _only_classes(a, b, training, evaluation, shift, scale):
        return Difference("the classes have other shares", shift=shift, by_class=True)
    line, fits = _line(a, b, mean_a, mean_b)
    smooth = abs(rough) <= max(ROUGH, SURE * rough_error)
    changed = abs(line[0] - 1) > 0.1 or abs(line[1]) > 0.1 * float(std)
    if fits and smooth and changed:
        said = _shown(line, float(b.std(0).square().mean().sqrt()))
        return Difference(f"evaluation inputs are {said} of the training inputs x", line, shift)
    channels = _channels(a, b, live, training.channels) if smooth else None
    if channels is not None:
        return Difference(channels, shift=shift)
    if rough > max(ROUGH, SURE * rough_error):
        return Difference(
            f"evaluation inputs are rougher ({math.exp(rough):.2g} times the squared step between neighbours): noise, "
            "compression or another resampling",
            shift=shift,
        )
    if rough < -max(ROUGH, SURE * rough_error):
        return Difference(
            f"evaluation inputs are smoother ({math.exp(rough):.2g} times the squared step between neighbours): "
            "blurred or resized",
            shift=shift,
        )
    bent = _bent(a, b)
    if bent > BENT and training.channels <= 4 and len(training.shape or ()) > 1:
        return Difference(
            "the values of evaluation inputs follow another curve (contrast, gamma, clipping)", shift=shift
        )
    factor = math.exp(scale)
    return Difference(
        f"evaluation inputs lie {shift:.2f} standard deviations from the training inputs, spread {factor:.2g} times as "
        "wide",
        shift=shift,
    )


def _shown(line: tuple[float, float], std: float) -> str:
    """`a x + b` in two digits, which is what it is known to; without b where that is nothing."""
    offset = f" {'+' if line[1] >= 0 else '-'} {abs(line[1]):.2g}" if abs(line[1]) > NOTHING * std else ""
    return f"{line[0]:.2g} x{offset}"


def _spread(x: Tensor) -> Tensor:
    """Per feature the distance between two quantiles, which outliers do not move; the deviation where it is 0."""
    wide = torch.quantile(x, 0.9, dim=0) - torch.quantile(x, 0.1, dim=0)
    return torch.where(wide > 0, wide, x.std(0))


def _log_scale(a: Tensor, b: Tensor) -> tuple[float, float]:
    """The median over features of the log ratio of their spreads, and its error."""
    first, second = _spread(a), _spread(b)
    used = (first > 0) & (second > 0)
    if not bool(used.any()):
        return 0.0, math.inf
    ratio = (second[used] / first[used]).log()
    # Of one feature; features hang together, so their number is no help.
    return float(ratio.median()), (1 / len(a) + 1 / len(b)) ** 0.5


def _log_rough(training: Sample, evaluation: Sample) -> tuple[float, float]:
    if not training.rough or not evaluation.rough:
        return 0.0, math.inf
    a, b = torch.cat(training.rough).double(), torch.cat(evaluation.rough).double()
    error = (a.var() / len(a) + b.var() / len(b)).sqrt()
    return float(b.mean() - a.mean()), float(error)


def _line(a: Tensor, b: Tensor, mean_a: Tensor, mean_b: Tensor) -> tuple[tuple[float, float], bool]:
    """The a and b of `a x + b` that make the one of the other, and whether they do."""
    spread = float(mean_a.std(correction=0)) if len(mean_a) > 1 else 0.0
    inner = float(a.std(0).square().mean().sqrt())
    ratio = float((b.std(0).square().sum() / a.std(0).square().sum()).sqrt())
    if len(mean_a) >= 8 and spread > 0.2 * inner:
        x, y = mean_a - mean_a.mean(), mean_b - mean_b.mean()
        slope = float((x * y).sum() / x.square().sum())
        residual = float((y - slope * x).square().sum() / y.square().sum().clamp_min(1e-30))
        fits = residual < 0.1 and abs(math.log(max(abs(slope), 1e-30) / ratio)) < 0.25
        slope = math.copysign(ratio, slope) if fits else slope
    else:
        slope, fits = ratio, True
    offset = float((mean_b - slope * mean_a).mean())
    made = slope * a + offset
    off = float((made.mean(0) - mean_b).square().mean().sqrt()) / max(ratio * inner, 1e-30)
    return (slope, offset), fits and off < 0.5 and _apart(made, b) < BENT


def _quantiles(x: Tensor) -> Tensor:
    flat = x.flatten()
    flat = flat[:: max(1, flat.numel() // 100_000)]
    return torch.quantile(flat, torch.linspace(0.02, 0.98, 49, dtype=x.dtype))


def _apart(a: Tensor, b: Tensor) -> float:
    first, second = _quantiles(a), _quantiles(b)
    reach = max(float(second[-1] - second[0]), 1e-30)
    return float((first - second).abs().mean()) / reach


def _bent(a: Tensor, b: Tensor) -> float:
    """How far the curve of quantiles is from its best line, as a part of its range."""
    x, y = _quantiles(a), _quantiles(b)
    xc, yc = x - x.mean(), y - y.mean()
    slope = (xc * yc).sum() / xc.square().sum().clamp_min(1e-30)
    return float((yc - slope * xc).abs().mean() / (y[-1] - y[0]).clamp_min(1e-30))


def _channels(a: Tensor, b: Tensor, live: Tensor, channels: int) -> str | None:
    """Lines that differ from channel to channel: normalised with another mean and standard deviation."""
    if not 2 <= channels <= 4 or len(live) % channels or not bool(live.all()):
        return None
    parts = [(x.unflatten(1, (channels, -1)), x) for x in (a, b)]
    one, two = parts[0][0], parts[1][0]
    lines = []
    for c in range(channels):
        first, second = one[:, c], two[:, c]
        slope = float(second.std() / first.std().clamp_min(1e-30))
        offset = float(second.mean()) - slope * float(first.mean())
        if _apart(slope * first + offset, second) > BENT:
            return None
        lines.append((slope, offset))
    slopes, offsets = zip(*lines, strict=True)
    apart = max(slopes) / max(min(slopes), 1e-30) > 1.1 or max(offsets) - min(offsets) > 0.1 * float(b.std())
    if not apart:
        return None
    said = ", ".join(_shown(line, float(b.std())) for line in lines)
    return f"evaluation inputs are normalised with another mean and standard deviation: by channel {said}"


def _only_classes(a: Tensor, b: Tensor, training: Sample, evaluation: Sample, shift: float, scale: float) -> bool:
    """Whether other shares of the predicted classes explain the difference: within a class the inputs agree."""
    if not training.classes or not evaluation.classes:
        return False
    first, second = torch.cat(training.classes), torch.cat(evaluation.classes)
    if len(first) != len(a) or len(second) != len(b):
        return False
    if variation(torch.bincount(first), torch.bincount(second)) < CLASSES:
        return False
    std = a.std(0).square().mean().sqrt().clamp_min(1e-12)
    within, weight, wide = 0.0, 0.0, []
    for label in torch.unique(second):
        x, y = a[first == label], b[second == label]
        if len(x) < 8 or len(y) < 8:
            continue
        noise = (x.var(0) / len(x) + y.var(0) / len(y)) / std.square()
        within += len(y) * float((((y.mean(0) - x.mean(0)) / std).square() - noise).mean())
        wide += [float((y.var(0).sum() / x.var(0).sum().clamp_min(1e-30)).log()) / 2] * len(y)
        weight += len(y)
    if weight < 0.5 * len(b):
        return False
    apart = math.sqrt(max(within / weight, 0.0))
    return apart < max(0.5 * shift, 0.1) and abs(sum(wide) / len(wide)) < SCALE


def variation(a: Tensor, b: Tensor) -> float:
    """The total variation between two counts of classes."""
    size = max(len(a), len(b))
    p, q = (torch.nn.functional.pad(v.double(), (0, size - len(v))) for v in (a, b))
    return float((p / p.sum() - q / q.sum()).abs().sum() / 2)
