"""Online Normalization, sample by sample, as the authors' code does it (Chiley et al. 2019, equations 8 to 11)."""

import torch

from tests.model.groups import axes, over


def start(state):
    """The two controllers."""
    state["backward_u"], state["backward_v"] = (torch.zeros_like(state["running_mean"])[None] for _ in range(2))


def pulled(case, state, x, g, w, met, scale, terms):
    """The gradient of x, the controllers after the batch, and the terms of both; g is that at the normalised output.

    met holds running mean and variance as each sample met them. A sample without values, or whose gradient is not
    finite in some channel, changes no controller. The controllers feed on their own rounding: terms are the sizes of
    all that was added up so far, as far as later samples keep it, and scale is the size of the terms of g.
    """
    rest = 1 - case.coupling.backward_decay
    u, v = state["backward_u"][0], state["backward_v"][0]
    of_u, of_v = terms
    dx, of_dx = torch.zeros_like(x), torch.zeros_like(u)
    for i, (mean, var) in enumerate(met):
        xs, gs = x[i : i + 1], g[i : i + 1]
        ws = torch.ones_like(xs[:, :1]) if w is None else w[i : i + 1].to(x.dtype)
        chosen, n = ws != 0, ws.sum()
        invstd = (var + case.eps).rsqrt()
        xhat = torch.where(chosen, (xs - over(mean, x)) * over(invstd, x), 0)
        through = unless_zero(over(rest * v, x), xhat) * over(invstd, x) + over(rest * u, x)
        dx[i] = torch.where(chosen, over(invstd, x) * gs - ws * through, 0)[0]
        size = (xs.abs() + over(mean.abs(), x)) * over(invstd, x)
        size, far, of_g = (torch.where(chosen & t.isfinite(), t, 0) for t in (size, xhat.abs(), scale[i : i + 1]))
        through = over(rest * v.abs(), x) * size + over(rest * of_v, x) * far
        of_dx = torch.maximum(of_dx, invstd * (of_g + ws * through).amax(axes(x)) + rest * (u.abs() + of_u))
        mean_g, mean_gx = (t.sum(axes(x)) / n for t in (torch.where(chosen, gs, 0), torch.where(chosen, gs * xhat, 0)))
        if not (n > 0 and mean_g.isfinite().all() and mean_gx.isfinite().all()):
            continue
        mean_y, mean_yy = ((ws * t).sum(axes(x)) / n for t in (xhat, xhat**2))
        held = rest * v
        mean_of_g, mean_of_gx, mean_size, mean_ysize = (
            t.sum(axes(x)) / n for t in (of_g, of_g * size, ws * size, ws * far * size)
        )
        of_u = (1 - rest) * of_u + (mean_of_g + rest * (v.abs() * mean_size + of_v * mean_y.abs())) * invstd + u.abs()
        of_v = (1 - rest * mean_yy).abs() * of_v + mean_of_gx + 2 * rest * v.abs() * mean_ysize + v.abs()
        v = v + mean_gx - held * mean_yy
        u = u + (mean_g - held * mean_y) * invstd - rest * u
    return dx, {"backward_u": u[None], "backward_v": v[None]}, of_dx.nan_to_num(0, 0, 0), (of_u, of_v)


def unless_zero(weight, x):
    return torch.where(weight == 0, 0.0, weight * x)


def finished(case, y, w):
    """The clamp of the released code, or the paper's layer scaling: padding is no position to average over."""
    c = case.coupling
    if c.clamp is not None:
        return y.clamp(-c.clamp, c.clamp)
    if not c.layer_scaling:
        return y
    return y * (_mean(y**2, w) + 1e-5).rsqrt()


def terms(y, g, w):
    """The size of the terms that cancel in the gradient of y, from that behind the layer scaling."""
    scale = (_mean(y**2, w) + 1e-5).rsqrt()
    return scale * g.abs() + scale**3 * y.abs() * _mean((g * y).abs(), w)


def _mean(y, w):
    """Of each sample, over what is no padding."""
    inner = tuple(range(1, y.dim()))
    chosen = torch.ones_like(y) if w is None else (w != 0).expand_as(y)
    return y.sum(inner, True) / chosen.sum(inner, True).clamp_min(1)
