"""How the spectra of inputs differ: noise that was added, blur, or another rate."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from batchnorm.diagnosis.experiments.changes import BACK, TURNS, Change, Function, random, turned
from batchnorm.diagnosis.experiments.views import BANDS, BLOCK, SECTORS, View, bands

LEAST = 8  # positions an axis
ROUGH = 0.3  # log ratio of power
SKEW = 0.2  # log ratio of power, of a direction against the others
TURNED = 0.34  # of the difference by direction, which exchanging rows and columns may leave
EXCHANGED = [2, 1, 0, 3]  # directions where rows become columns
EDGES = 0.1  # log ratio of steps between blocks and within
LENGTHS = (3, 5, 7, 9, 11, 15)  # of motion
FEW = 256  # samples that are smeared or compressed for a comparison
SURE = 4.0  # standard errors
FITS = {"noise": 0.25, "without": 0.25, "rate": 0.5, "blur": 0.5}  # of the distance before, in log power
RATES = [2 ** (k / 8) for k in range(-16, 17) if abs(k) > 1]
MOST = 4.0  # by which a frequency is raised where blur is undone


def by_spectrum(x: View, y: View) -> tuple[Change | None, float]:
    """What was done to the spectrum, and by how much it differs beyond chance, in log power; None and 0 for nothing."""
    if not x.spatial or min(x.x.shape[2:]) < LEAST or x.x.shape[2:] != y.x.shape[2:]:
        return None, 0.0
    a, b = x.power, y.power
    used = (a.mean(0) > 0) & (torch.bincount(bands(x.x.shape[2:]).clamp_min(0), minlength=BANDS) > 0)
    least = 1e-9 * a[:, used].mean()
    a, b = a[:, used].clamp_min(least), b[:, used].clamp_min(least)
    step = b.log().mean(0) - a.log().mean(0)
    error = (b.log().var(0) / len(b) + a.log().var(0) / len(a)).sqrt()
    # A gain is no matter of the spectrum: the lower third of the bands says what it is.
    low = step[: max(1, len(step) // 3)].median()
    beyond = ((step - low).abs() - torch.clamp(SURE * error, min=ROUGH)).clamp_min(0)
    change, skew = by_direction(x, y)
    if change is not None:
        return change, max(float(beyond.mean()), skew)
    if not bool((beyond > 0).any()):
        return None, 0.0
    return _named(a.mean(0), b.mean(0), step - low, used, x.x.dim() == 3), float(beyond.mean())


def _named(a: Tensor, b: Tensor, step: Tensor, used: Tensor, sequences: bool) -> Change:
    """The model that fits best: noise in the one or the other, another rate, blur; else rougher or smoother."""
    before = _misfit(a, b)
    found = [(*_noise(a, b), "noise"), (*_noise(b, a), "without"), (*_blur(a, b, used), "blur")]
    # The spectra of images fall evenly, so that another scale is hardly more than a gain.
    found += [(*_rate(a, b), "rate")] if sequences else []
    named = [one for one in found if one[0] < FITS[one[2]] * before]
    _, value, kind = min(named, key=lambda one: one[0], default=(0.0, 0.0, ""))
    if kind == "noise":
        std = value**0.5
        return Change(f"evaluation inputs have noise (standard deviation {std:.2g}) that training inputs have not",
                      lambda v: v + std * random(v), _filter(b, a, used))  # fmt: skip
    if kind == "without":
        words = (
            f"training inputs have noise or detail (standard deviation {value**0.5:.2g}) that evaluation inputs have "
            "not: noise as augmentation, or evaluation inputs that are blurred or resized"
        )
        return Change(words, _filter(a, b, used), lambda v: v + value**0.5 * random(v), usual=True)
    if kind == "rate":
        words = f"evaluation inputs run about {1 / value:.2g} times as fast: another sample rate or scale"
        return Change(words, lambda v: stretched(v, 1 / value), lambda v: stretched(v, value))
    top = math.exp(float(step[-max(1, len(step) // 4) :].mean()))
    how = "smoother" if top < 1 else "rougher"
    what = "blurred or resized" if top < 1 else "sharpened, compressed or resampled"
    words = f"evaluation inputs are {how} ({top:.2g} times the power at high frequencies): {what}"
    return Change(words, _filter(a, b, used), _filter(b, a, used), usual=True)


def _misfit(a: Tensor, b: Tensor) -> float:
    """Root mean square of the log ratio but for a gain, frequencies with more power counting more."""
    ratio, weight = b.log() - a.log(), (a / a.mean() + b / b.mean()).sqrt()
    gain = (weight * ratio).sum() / weight.sum()
    return float(((weight * (ratio - gain).square()).sum() / weight.sum()).sqrt())


def _noise(a: Tensor, b: Tensor) -> tuple[float, float]:
    """The variance that, added to a and with a gain, makes it most like b."""
    tried = a.mean() * torch.logspace(-3, 2, 60, dtype=torch.float64)
    left = [_misfit(a + s, b) for s in tried]
    at = min(range(len(left)), key=left.__getitem__)
    gain = (b.log() - (a + tried[at]).log()).median().exp()
    return left[at], float(tried[at] * gain)


def _rate(a: Tensor, b: Tensor) -> tuple[float, float]:
    """The factor of the frequencies that makes a most like b."""
    at = torch.arange(len(a), dtype=torch.float64)
    found = []
    for rate in RATES:
        place = (at + 0.5) * rate - 0.5
        inside = (place >= 0) & (place <= len(a) - 1)
        if int(inside.sum()) < max(4, len(a) // 4):
            continue
        low = place[inside].floor().long().clamp_max(len(a) - 2)
        part = place[inside] - low
        found.append((_misfit((1 - part) * a[low] + part * a[low + 1], b[inside]), rate))
    return min(found, default=(math.inf, 1.0))


def _blur(a: Tensor, b: Tensor, used: Tensor) -> tuple[float, float]:
    """A Gaussian in frequency, by least squares in log power."""
    f = ((torch.arange(BANDS, dtype=torch.float64) + 0.5) / (2 * BANDS))[used].square()
    ratio = b.log() - a.log()
    slope = ((f - f.mean()) * (ratio - ratio.mean())).sum() / (f - f.mean()).square().sum().clamp_min(1e-30)
    return float((ratio - ratio.mean() - slope * (f - f.mean())).square().mean().sqrt()), float(slope)


def is_cut(middle: list[Tensor], resized: list[Tensor]) -> bool:
    """Whether inputs of another size were cut: the spectra of their middles agree, and better than after resizing."""
    (x, y), (a, b) = map(View, middle), map(View, resized)
    if min(x.x.shape[2:]) < LEAST or by_spectrum(x, y)[1] > 0:
        return False
    used = x.power.mean(0) > 0
    left = [_misfit(p.power.mean(0)[used], q.power.mean(0)[used]) for p, q in ((x, y), (a, b))]
    return left[0] < left[1]


def by_direction(x: View, y: View) -> tuple[Change | None, float]:
    """Images turned by a quarter, or smeared by motion, with noise since; and by how much directions differ, in log."""
    if x.x.dim() != 4:
        return None, 0.0
    (a, b) = ((v.sectors + 1e-12).log() for v in (x, y))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    error = (b.var(0) / len(b) + a.var(0) / len(a)).sqrt()
    step = b.mean(0) - a.mean(0)
    beyond = (step.abs() - torch.clamp(SURE * error, min=SKEW)).clamp_min(0)
    if not bool((beyond > 0).any()):
        return None, 0.0
    if x.x.shape[2] == x.x.shape[3] and float((b.mean(0) - a.mean(0)[EXCHANGED]).norm()) < TURNED * float(step.norm()):
        said = "rows and columns of evaluation inputs are exchanged: transposed, or turned by 90 degrees"
        among = tuple(turned(TURNS, name) for name in ("transposed", *BACK))
        return replace(among[0], words=said, among=among), float(beyond.mean())
    used = (x.cells > 0) & (y.cells > 0)
    few, aim = x.x[:FEW], y.cells[used]
    tried: list[tuple[float, Change]] = []
    for length in (n for n in LENGTHS if n < 2 * min(x.x.shape[2:])):
        for way in range(SECTORS):
            misfit, noise = _noise(View(_smeared(few, length, way)).cells[used], aim)
            tried.append((misfit, _motion(x, length, way, noise**0.5)))
    least, change = min(tried, key=lambda pair: pair[0])
    # Noise, and a filter without a direction, move the directions of spectra that have one of their own.
    gain = ((y.power + 1e-12).mean(0) / (x.power + 1e-12).mean(0)).repeat_interleave(SECTORS)
    plain = min(_noise(x.cells[used], aim)[0], _misfit((x.cells * gain)[used], aim))
    return (change, float(beyond.mean())) if least < FITS["blur"] * plain else (None, 0.0)


def _motion(x: View, length: int, way: int, noise: float) -> Change:
    line = _line_of(length, way)
    power = x.spectrum.mean(0).view(x.x.shape[2:])
    whole = torch.zeros_like(power)
    for row, column in line.nonzero().tolist():
        whole[(row - length // 2) % whole.shape[0], (column - length // 2) % whole.shape[1]] += 1 / length
    passed = torch.fft.fft2(whole).real
    back = (passed * power / (passed.square() * power + noise**2 + 1e-12)).clamp(-MOST, MOST).float()

    def undo(v: Tensor) -> Tensor:
        return torch.fft.ifft2(torch.fft.fft2(v.float()) * back.to(v.device)).real.to(v.dtype)

    where = ("across", "along a diagonal", "down", "along a diagonal")[way]
    since = f", with noise (standard deviation {noise:.2g}) since" if noise > 0.1 * float(x.spread.mean()) else ""
    words = f"evaluation inputs are smeared {where}, over about {length} positions{since}: motion, or a filter"
    return Change(words, lambda v: _smeared(v, length, way) + noise * random(v), undo)


def _line_of(length: int, way: int) -> Tensor:
    """A line of ones in a square: across, along a diagonal, down, along the other."""
    middle, at = torch.full((length,), length // 2), torch.arange(length)
    rows, columns = ((middle, at), (at, at), (at, middle), (at, at.flip(0)))[way]
    return torch.zeros(length, length).index_put_((rows, columns), torch.ones(length))


def _smeared(v: Tensor, length: int, way: int) -> Tensor:
    kernel = (_line_of(length, way) / length).to(v)[None, None].expand(v.shape[1], 1, -1, -1)
    return functional.conv2d(functional.pad(v, [length // 2] * 4, mode="reflect"), kernel, groups=v.shape[1])


def by_blocks(x: View, y: View) -> Change | None:
    """Images that were compressed in blocks: steps stand between the blocks."""
    if x.x.dim() != 4 or min(x.x.shape[2:]) < 2 * BLOCK or x.x.shape[1:] != y.x.shape[1:]:
        return None
    if y.blocks <= EDGES + max(x.blocks, 0.0):
        return None
    steps = [float(x.spread.mean()) * 2 ** (k / 2) for k in range(-6, 5)]
    made = [abs(View(compressed(x.x[:FEW], step)).blocks - y.blocks) for step in steps]
    step = steps[made.index(min(made))]
    words = f"evaluation inputs show the edges of blocks of {BLOCK} x {BLOCK} positions: compressed (JPEG)"
    return Change(words, lambda v: compressed(v, step), usual=True)


def compressed(v: Tensor, step: float) -> Tensor:
    """Cosines of each block in multiples of step, of higher frequencies in larger ones; what fills no block stays."""
    n = torch.arange(BLOCK, dtype=torch.float64)
    cosines = (torch.pi * (2 * n + 1) * n[:, None] / (2 * BLOCK)).cos() * (2 / BLOCK) ** 0.5
    cosines[0] /= 2**0.5
    to, by = cosines.to(v), (step * (1 + n[:, None] + n) / 2).to(v)
    high, wide = (size - size % BLOCK for size in v.shape[2:])
    parts = v[..., :high, :wide].unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).transpose(3, 4)
    kept = to.T @ ((to @ parts @ to.T / by).round() * by) @ to
    out = v.clone()
    out[..., :high, :wide] = kept.transpose(3, 4).flatten(4, 5).flatten(2, 3)
    return out


def _filter(a: Tensor, b: Tensor, used: Tensor) -> Function:
    """Every frequency times the root of the ratio of powers, so that a becomes b; the mean stays."""
    gain = torch.ones(BANDS, dtype=torch.float64)
    gain[used] = (b / a).sqrt().clamp(0, MOST)

    def change(v: Tensor) -> Tensor:
        axes = tuple(range(2, v.dim()))
        band = bands(v.shape[2:])
        by = torch.where(band >= 0, gain[band.clamp_min(0)], 1.0).float().view(v.shape[2:]).to(v.device)
        return torch.fft.ifftn(torch.fft.fftn(v.float(), dim=axes) * by, dim=axes).real.to(v.dtype)

    return change


def stretched(v: Tensor, rate: float) -> Tensor:
    """The same number of positions at another rate, around the centre; beyond the ends it is mirrored."""
    for axis in range(2, v.dim()):
        n = v.shape[axis]
        place = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * rate + (n - 1) / 2
        period = 2 * (n - 1)
        place = place.remainder(period)
        place = torch.where(place > n - 1, period - place, place)
        low = place.floor().long().clamp_max(n - 2)
        part = (place - low).to(v).view([-1] + [1] * (v.dim() - axis - 1))
        low = low.to(v.device)
        v = (1 - part) * v.index_select(axis, low) + part * v.index_select(axis, low + 1)
    return v
