"""Output and gradients of one step: by autograd over plain operations, or by hand where a paper estimates them."""

from typing import NamedTuple

import torch
from torch.nn import functional

from tests.model import online, remembering
from tests.model.groups import Moments, axes, over

CURVED = ("silu", "hardswish", "gelu")


class Run(NamedTuple):
    """Output and gradients, with the size of the terms they are made of, per channel."""

    y: torch.Tensor
    dx: torch.Tensor
    dweight: torch.Tensor
    dbias: torch.Tensor
    sizes: dict


class Used(NamedTuple):
    """What normalised one group; quiet scales the gradient and not the output, few marks the running statistics.

    With stored nothing else does: the layer is in eval mode.
    """

    first: int
    last: int
    m: Moments
    mean: torch.Tensor
    var: torch.Tensor
    ratio: torch.Tensor | float = 1.0
    offset: torch.Tensor | float = 0.0
    quiet: torch.Tensor | float = 1.0
    few: bool = False
    stored: bool = False


def affine(model, used, x, weight, bias, w):
    """The output before residual and activation."""

    def at(vector):
        return over(vector, x) if isinstance(vector, torch.Tensor) else vector

    parts = []
    for one in used:
        xs, spread = present(x, w, one), (one.var + model.case.eps).sqrt()
        if one.stored and model.dtype == torch.float32:
            # Torch's own kernel, whose output at inference is the layers' to the bit.
            y = functional.batch_norm(xs, one.mean, one.var, weight, bias, False, 0.0, model.case.eps)
        else:
            y = ((xs - at(one.mean)) / at(spread) * at(one.ratio) + at(one.offset)) * at(weight) + at(bias)
        parts.append(y if w is None else torch.where(w[one.first : one.last] != 0, y, 0))
    return placed(used, parts, x)


def present(x, w, one):
    """The values of a group, with zeros in the place of its padding."""
    xs = x[one.first : one.last]
    return xs if w is None else torch.where(w[one.first : one.last] != 0, xs, 0)


def placed(used, parts, x):
    """Rows of the groups at their places, zero where a group is absent."""
    rows, at = [], 0
    for one, part in zip(used, parts, strict=True):
        rows += [torch.zeros_like(x[at : one.first]), part]
        at = one.last
    return torch.cat([*rows, torch.zeros_like(x[at:])])


def finished(model, y, w, residual):
    """What follows the affine map: a clamp, the residual, the activation; zero where there is no sample."""
    if model.case.coupling.kind == "online":
        y = online.finished(model.case, y, w)
    if residual is not None:
        y = y + residual.to(model.dtype)
    if model.case.activation == "leaky_relu":
        y = functional.leaky_relu(y, model.case.slope)
    elif model.case.activation is not None:
        y = getattr(functional, model.case.activation)(y)
    return y if w is None else torch.where(w != 0, y, 0)


def by_autograd(model, used, x, weight, bias, g, w, residual):
    """The derivative of the forward, by autograd."""
    before = affine(model, used, x, weight, bias, w)
    y = finished(model, before, w, residual)
    grads = torch.autograd.grad(y, (x, weight, bias), g, allow_unused=True) if used else (None,) * 3
    dx, dw, db = (torch.zeros_like(t) if d is None else d for d, t in zip(grads, (x, weight, bias), strict=True))
    if w is not None:
        dx = torch.where(w != 0, dx, 0)
    if model.case.coupling.layer_scaling and model.case.coupling.kind == "online":
        g = online.terms(before.detach(), g, w)
    return Run(y.detach(), dx, dw, db, sizes_of(model, used, x.detach(), g, w))


def by_hand(model, used, x, weight, bias, g, w, residual):
    """The estimate of the paper in the place of the derivative."""
    leaf = affine(model, used, x, weight, bias, w).requires_grad_()
    y = finished(model, leaf, w, residual)
    upstream, (g,) = g, torch.autograd.grad(y, leaf, g)
    g, upstream = (t if w is None else torch.where(w != 0, t, 0) for t in (g, upstream))
    xhats = [normalised(model, one, x, w) for one in used]
    sums = [
        ((g[o.first : o.last] * scaled).sum(axes(x)), g[o.first : o.last].sum(axes(x)))
        for o, scaled in zip(used, xhats, strict=True)
    ]
    zero = torch.zeros_like(weight)
    dw, db = sum((sx * o.ratio for o, (sx, _) in zip(used, sums, strict=True)), zero), sum((s for _, s in sums), zero)
    # A curve's slope near 0 is a difference of terms of the upstream gradient's size.
    terms = upstream if model.case.activation in CURVED else g
    if model.kind == "online" and model.case.coupling.layer_scaling:
        terms = online.terms(leaf.detach(), upstream, w)
    sizes = sizes_of(model, used, x, terms, w)
    if not used:
        return Run(y.detach(), torch.zeros_like(x), dw, db, sizes)
    if model.kind == "online":
        full = {one.first: (one.mean, one.var) for one in used}
        met = [full.get(i, (zero, zero + 1)) for i in range(len(x))]
        to_xhat = over(weight, x)
        dx, new, sizes["dx"], model.controllers = online.pulled(
            model.case, model.state, x, g * to_xhat, w, met, (terms * to_xhat).abs(), model.controllers
        )
    else:
        dx, new = with_memory(model, used, x, weight, g, w, xhats, sums)
    model.state.update(new)
    return Run(y.detach(), dx, dw, db, sizes)


def normalised(model, one, x, w):
    """The data of a group about its mean in units of its deviation, zero at padding."""
    xs = (present(x, w, one) - over(one.mean, x)) / over((one.var + model.case.eps).sqrt(), x)
    return xs if w is None else torch.where(w[one.first : one.last] != 0, xs, 0)


def with_memory(model, used, x, weight, g, w, xhats, sums):
    """dx = (g - psi * xhat) / sqrt(q + eps) with g at the normalised data, and what the memory holds after it."""
    scales = [weight * o.ratio * o.quiet for o in used]
    live = [i for i, one in enumerate(used) if not one.few]
    psi = {i: scales[i] * sums[i][0] / used[i].m.n for i in live}
    counts = [used[i].m.n for i in live]
    squares = [used[i].m.var / (used[i].var + model.case.eps) for i in live]
    new = {}
    if live:
        step = model.step_of_forward
        stands, new = remembering.pulled(
            model.case, model.state, step, [psi[i] for i in live], counts, squares, model.outlier
        )
        psi.update(zip(live, stands, strict=True))
    parts = []
    for i, one in enumerate(used):
        rows, root = slice(one.first, one.last), over((one.var + model.case.eps).sqrt(), x)
        # The weight of a value is psi over the deviation: of infinite statistics it is 0, and leaves it out.
        at = over(psi[i], x) / root if i in psi else torch.zeros_like(root)
        through = online.unless_zero(at, xhats[i])
        through = through if w is None else w[rows].to(model.dtype) * through
        dx = g[rows] * over(scales[i], x) / root - through
        parts.append(dx if w is None else torch.where(w[rows] != 0, dx, 0))
    finite = all(t.isfinite().all() for pair in sums for t in pair)
    return placed(used, parts, x), new if finite else {}


def sizes_of(model, used, x, g, w):
    """How large the terms are that cancel in outputs and gradients, per channel."""
    zero = torch.zeros_like(model.weight)
    out = {name: zero for name in ("y", "dx", "dweight", "dbias", "psi")}
    for one in used:
        xhat, gs = normalised(model, one, x, w).detach().abs(), g[one.first : one.last].abs()
        xhat, gs = (torch.where(t.isfinite(), t, 0) for t in (xhat, gs))
        far, most = xhat.amax(axes(x)), gs.amax(axes(x))
        ratio = torch.as_tensor(one.ratio * one.quiet, dtype=model.dtype)
        scale = (model.weight * ratio).abs()
        found = {
            "y": scale * far + (one.offset * model.weight + model.bias).abs(),
            "dx": scale / (one.var.detach() + model.case.eps).sqrt() * most * (1 + far**2),
            "dweight": ((gs * xhat).sum(axes(x)) + gs.sum(axes(x))) * (1 + ratio.abs()),
            "dbias": gs.sum(axes(x)),
            "psi": scale * most * far,
        }
        out = {name: out[name] + found[name].nan_to_num(0, 0, 0) for name in out}
    model.psi = torch.maximum(model.psi, out["psi"])
    return out
