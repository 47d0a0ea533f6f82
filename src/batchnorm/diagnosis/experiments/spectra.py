"""How the spectra of inputs differ: noise that was added, blur, or another rate."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from batchnorm.diagnosis.experiments.changes import Change, Function
from batchnorm.diagnosis.experiments.views import BANDS, View, bands

LEAST = 8  # positions an axis
ROUGH = 0.3  # log ratio of power
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
                      lambda v: v + std * _random(v), _filter(b, a, used))  # fmt: skip
    if kind == "without":
        words = (
            f"training inputs have noise or detail (standard deviation {value**0.5:.2g}) that evaluation inputs have "
            "not: noise as augmentation, or evaluation inputs that are blurred or resized"
        )
        return Change(words, _filter(a, b, used), lambda v: v + value**0.5 * _random(v), usual=True)
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


def _random(v: Tensor) -> Tensor:
    return torch.randn(v.shape, generator=torch.Generator().manual_seed(0)).to(v)


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
