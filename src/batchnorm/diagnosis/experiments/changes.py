"""What may have been done to inputs: each change as a function, the one that undoes it, and words for both."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from batchnorm.diagnosis.experiments.views import View

FACTORS = {255.0: "bytes against 0 to 1: ", 1000.0: "", 100.0: "", 60.0: "", 9.80665: "", 2.54: "", 32768.0: ""}
NEAR = 0.08  # log ratio: a factor that is meant
AS_WELL = 0.05  # of the deviation that a simpler line may leave
NOTHING = 0.02  # standard deviations: an offset that is not said
SURE = 4.0  # standard errors
ZOOMS = (1.25, 1.5, 2.0, 3.0)
NAMED = 4  # channels or columns that are listed
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Change:
    """What differs, in words; nothing where nothing does.

    apply makes training inputs like the evaluation inputs, undo the reverse; code undoes it on `args[0]`.
    usual says that augmentation of the training inputs has the same effect: then only harm that was measured counts.
    by_class says that it is the shares of the classes that differ. alike makes both inputs alike if this is what
    differs; without it apply must make training inputs like the evaluation inputs. Which one of among it is, inputs do
    not tell.
    """

    words: str = ""
    apply: Function | None = None
    undo: Function | None = None
    code: str = ""
    usual: bool = False
    by_class: bool = False
    alike: Function | None = None
    among: tuple[Change, ...] = ()

    def pair(self, x: View, y: View) -> tuple[View, View]:
        """Both inputs, alike if this is what differs."""
        if self.alike is not None:
            return View(self.alike(x.x)), View(self.alike(y.x))
        return (x if self.apply is None else View(self.apply(x.x))), y


def wide(values: Tensor, v: Tensor, axis: int = 1) -> Tensor:
    """One value a channel (or a sample, with axis 0), in the shape that broadcasts against v."""
    return (
        values.to(v.device)
        .view([-1 if k == axis else 1 for k in range(v.dim())])
        .to(values.dtype if values.dtype == torch.bool else v.dtype)
    )


def random(v: Tensor, draw: Callable[..., Tensor] = torch.randn) -> Tensor:
    """Random numbers that repeat, in the shape of v."""
    return draw(v.shape, generator=torch.Generator().manual_seed(0)).to(v)


def _usual(a: float) -> str:
    """What a factor is known as."""
    size = max(abs(a), 1 / abs(a))
    names = [name for factor, name in FACTORS.items() if abs(math.log(size / factor)) < NEAR]
    larger = "larger" if abs(a) > 1 else "smaller"
    return f" ({names[0]}{size:.3g} times {larger})" if names else f" ({size:.3g} times {larger})" if size > 1.5 else ""


def _fitted(p: Tensor, q: Tensor, weight: Tensor) -> tuple[float, float]:
    """The a and b of `q = a p + b`; without b, or with a = 1, where that fits as well."""

    def left(a: float, b: float) -> float:
        return float((weight * (q - a * p - b).square()).mean().sqrt())

    centre, aim = (float((weight * v).sum() / weight.sum()) for v in (p, q))
    a = (
        float((weight * (p - centre) * (q - aim)).sum() / (weight * (p - centre).square()).sum().clamp_min(1e-30))
        or 1.0
    )
    scale = float((weight * p * q).sum() / (weight * p.square()).sum().clamp_min(1e-30))
    free = (a, aim - a * centre)
    enough = left(*free) + AS_WELL * float((weight * (q - aim).square()).mean().sqrt())
    near = [
        f for f in FACTORS if abs(math.log(max(scale, 1e-30) / f)) < NEAR or abs(math.log(max(scale, 1e-30) * f)) < NEAR
    ]
    exact = [(f if scale > 1 else 1 / f, 0.0) for f in near]
    plain = [one for one in ((1.0, aim - centre), *exact, (scale, 0.0)) if one[0] > 0 and left(*one) <= enough]
    return plain[0] if plain else free


def by_line(x: View, y: View, sign: int = 1) -> Change:
    """One line `a x + b` for all channels, by least squares over their quantiles."""
    p, q = x.quantiles if sign > 0 else x.quantiles.flip(1), y.quantiles
    # Equal weight for every column, in its own deviations.
    wide = p.std(1)[:, None].expand_as(p)
    # A column that is constant says nothing of a.
    known = wide > 0 if bool((wide > 0).any()) else wide == 0
    a, b = _fitted(p[known], q[known], torch.where(wide > 0, 1 / wide.clamp_min(1e-30).square(), 1.0)[known])
    said = _line(a, b, float(y.spread.mean())) + ("" if b else _usual(a))
    words = f"evaluation inputs are {_normalisation(x, y) if b else ''}{said} of the training inputs x"
    return Change(words, lambda v: a * v + b, lambda v: (v - b) / a, f"(args[0] {_minus(b)}) / {a:.4g}")


def by_channel(x: View, y: View, which: Tensor) -> Change:
    """A line of its own for each of these channels or columns."""
    p, q = x.quantiles, y.quantiles
    fits = [_fitted(p[i], q[i], torch.ones_like(p[i])) if bool(used) else (1.0, 0.0) for i, used in enumerate(which)]
    a, b = torch.tensor(fits, dtype=torch.float64).T
    lines = [_line(s, o, float(w)) + ("" if o else _usual(s)) for (s, o), w in zip(fits, y.spread, strict=True)]
    units = [i for i, used in enumerate(which.tolist()) if used]
    what = "channel" if x.spatial else "column"
    named = ", ".join(f"{what} {i} is {lines[i]}" for i in units[:NAMED])
    named += f" and {len(units) - NAMED} more" if len(units) > NAMED else ""
    kind = _normalisation(x, y)
    if not kind and x.spatial and len(units) == len(lines):
        kind = "normalised with another mean and standard deviation: "
    words = f"evaluation inputs are {kind}" if kind else "of the evaluation inputs "
    shape = [1, -1] + [1] * (x.x.dim() - 2)
    slope, offset = (v.float().view(shape) for v in (a, b))
    listed = [[float(f"{value:.4g}") for value in v.tolist()] for v in (b, a)]
    code = "(args[0] - torch.tensor({}).view({shape})) / torch.tensor({}).view({shape})".format(*listed, shape=shape)
    return Change(words + named, lambda v: slope * v + offset, lambda v: (v - offset) / slope,
                  code if len(lines) <= NAMED else "")  # fmt: skip


def _normalisation(x: View, y: View) -> str:
    """Whether one of the two has mean 0 and deviation 1 in every channel, and the other lies within 0 and 1, or 255."""
    one, other = (
        bool((v.mean(1).abs() < 0.6).all() and ((v.std(1).log2()).abs() < 1).all()) for v in (x.quantiles, y.quantiles)
    )
    plain, also = (
        float(v.min()) >= 0 and (float(v.max()) <= 1 or 2 < float(v.max()) <= 255) for v in (x.quantiles, y.quantiles)
    )
    if one and also and not other:
        return "without the training inputs' normalisation (mean and standard deviation left out): "
    if other and plain and not one:
        return "normalised to mean 0 and standard deviation 1, and the training inputs are not: "
    return ""


def by_order(x: View, y: View) -> Change | None:
    """Channels in another order, where their distributions tell them apart."""
    p, q, wide = x.quantiles, y.quantiles, x.spread.mean().clamp_min(1e-30)
    if not 2 <= len(p) <= NAMED or not x.spatial:
        return None
    cost = (p[:, None] - q[None]).abs().mean(2) / wide
    size = range(len(p))
    best = min(itertools.permutations(size), key=lambda order: sum(float(cost[order[i], i]) for i in size))
    if list(best) == list(size):
        return None
    return _order(list(best))


def _order(best: list[int]) -> Change:
    back = [best.index(i) for i in range(len(best))]
    return Change(f"the channels of evaluation inputs are in another order: training's {', '.join(map(str, best))}",
                  lambda v: v[:, best], lambda v: v[:, back], f"args[0][:, {back}]")  # fmt: skip


def by_curve(x: View, y: View, which: Tensor) -> Change:
    """Quantile to quantile, between them in lines: of these columns, or one curve for all channels."""
    p, q = x.quantiles, y.quantiles
    columns = not x.spatial and len(p) > 1
    if not columns:
        p, q = p.mean(0, keepdim=True), q.mean(0, keepdim=True)
    units = [i for i, used in enumerate(which.tolist()) if used]

    def through(a: Tensor, b: Tensor) -> Function:
        def change(v: Tensor) -> Tensor:
            if not columns:
                return _interpolated(v, a[0], b[0])
            v = v.clone()
            for i in units:
                v[:, i] = _interpolated(v[:, i], a[i], b[i])
            return v

        return change

    named = ", ".join(map(str, units[:NAMED])) + (f" and {len(units) - NAMED} more" if len(units) > NAMED else "")
    whose = f"column {named} of evaluation inputs follows" if columns else "the values of evaluation inputs follow"
    return Change(f"{whose} another curve (contrast, gamma, clipping, a logarithm)", through(p, q), through(q, p))


def _interpolated(v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The line from a to b through the knots, the outer ones continued."""
    a, b = (torch.cummax(k.to(v.device, torch.float64), 0).values for k in (a, b))
    at = torch.searchsorted(a, v.double().contiguous()).clamp(1, len(a) - 1)
    step = (a[at] - a[at - 1]).clamp_min(1e-12 * float(a[-1] - a[0]) + 1e-30)
    part = ((v.double() - a[at - 1]) / step).clamp(-4, 5)
    return (b[at - 1] + part * (b[at] - b[at - 1])).to(v.dtype)


# By a method of tensors, with its arguments.
TURNS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "upside down": ("flip", (2,)),
    "mirrored": ("flip", (3,)),
    "transposed": ("transpose", (2, 3)),
    "turned by 90 degrees": ("rot90", (1, (2, 3))),
    "turned by 180 degrees": ("flip", (2, 3)),
    "turned by 270 degrees": ("rot90", (3, (2, 3))),
}
BACK = {"turned by 90 degrees": "turned by 270 degrees", "turned by 270 degrees": "turned by 90 degrees"}
REVERSED: dict[str, tuple[str, tuple[Any, ...]]] = {"reversed in time": ("flip", (2,))}


def symmetries(x: Tensor) -> list[Change]:
    """What leaves the values as they are: channels in another order, and ways to turn inputs that keep their shape."""
    if x.dim() <= 2:
        return []
    size = x.shape[1]
    found = [_order(list(best)) for best in itertools.permutations(range(size))][1:] if 2 <= size <= NAMED - 1 else []
    return found + turns(View(x))


def turns(x: View) -> list[Change]:
    """Ways to turn or mirror inputs that keep their shape."""
    found = TURNS if x.x.dim() == 4 and x.x.shape[2] == x.x.shape[3] else REVERSED if x.x.dim() == 3 else {}
    return [turned(found, name) for name in found]


def turned(by: dict[str, tuple[str, tuple[Any, ...]]], name: str) -> Change:
    """One of them."""
    (method, given), (back, of) = by[name], by[BACK.get(name, name)]
    listed = ", ".join(map(repr, of))
    return Change(
        f"evaluation inputs are {name}", lambda v: getattr(v, method)(*given), lambda v: getattr(v, back)(*of),
        f"args[0].{back}({listed})", usual=name == "mirrored",
    )  # fmt: skip


def zooms(x: View) -> list[Change]:
    """Images taken from nearer, cut off at the border, or from farther away, with the border's values around."""
    if x.x.dim() != 4 or min(x.x.shape[2:]) < 8:
        return []
    found = []
    for factor in ZOOMS:
        nearer, farther = (lambda v, by=by: _zoomed(v, by) for by in (factor, 1 / factor))
        said = f"evaluation inputs show everything about {{}} ({factor:g} times): a {{}}"
        found += [
            Change(said.format("larger", "crop that was enlarged, or a nearer camera"), nearer, farther, usual=True),
            Change(said.format("smaller", "wider crop, or a camera farther away"), farther, nearer, usual=True),
        ]
    return found


def _zoomed(v: Tensor, factor: float) -> Tensor:
    """Around the centre, in the same size; what lies beyond the border is its nearest value."""
    axes = [torch.linspace(-1 + 1 / n, 1 - 1 / n, n, device=v.device) / factor for n in v.shape[2:]]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1).expand(len(v), -1, -1, -1)
    return functional.grid_sample(v.float(), grid, padding_mode="border", align_corners=False).to(v.dtype)


def resized(x: Tensor, y: Tensor, cut: bool) -> Change:
    """Another size: undone by interpolation, or where inputs were cut by the mean training input around them."""
    sizes = [" x ".join(map(str, v.shape[2:])) for v in (y, x)]
    words = f"evaluation inputs are {sizes[0]}, training inputs {sizes[1]}"
    if cut:
        mean = x.mean(0)
        return Change(
            f"{words}: cut to another size, not resized", lambda v: _framed(v, y.mean(0)), lambda v: _framed(v, mean)
        )
    return Change(f"{words}: resized or resampled", None, lambda v: interpolated(v, x.shape[2:]))


def interpolated(v: Tensor, size: torch.Size) -> Tensor:
    """The whole at another size."""
    mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[v.dim()]
    return functional.interpolate(v, size=size, mode=mode, align_corners=False)


def _framed(v: Tensor, frame: Tensor) -> Tensor:
    """The centre of v, in the middle of a frame that shows where v is smaller."""
    out = frame.to(v).expand(len(v), *frame.shape).clone()
    here, there = [slice(None)], [slice(None)]
    for n, m in zip(v.shape[2:], frame.shape[1:], strict=True):
        size = min(n, m)
        here.append(slice((m - size) // 2, (m - size) // 2 + size))
        there.append(slice((n - size) // 2, (n - size) // 2 + size))
    out[(slice(None), *here)] = v[(slice(None), *there)]
    return out


def _line(a: float, b: float, std: float) -> str:
    """`a x + b` in three digits at most; without b where that is nothing."""
    offset = f" {'+' if b >= 0 else '-'} {abs(b):.2g}" if abs(b) > NOTHING * std else ""
    shown = f"{a:.0f}" if abs(a) >= 100 else f"{a:.2g}"
    return f"{shown} x{offset}"


def _minus(value: float) -> str:
    return f"{'-' if value >= 0 else '+'} {abs(value):.4g}"
