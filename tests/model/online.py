"""Online Normalization, sample by sample, as the authors' code does it (Chiley et al. 2019, equations 8 to 11)."""

import torch

from tests.model.groups import axes, over


def start(state):
    """The two controllers."""
    state["backward_u"], state["backward_v"] = (torch.zeros_like(state["running_mean"])[None] for _ in range(2))


def pulled(case, state, x, g, w, met):
    """The gradient of x, and the controllers after the batch; g is that at the normalised output.

    met holds running mean and variance as each sample met them. A sample without values, or whose gradient is not
    finite in some channel, changes no controller.
    """
    rest = 1 - case.coupling.backward_decay
    u, v = state["backward_u"][0], state["backward_v"][0]
    dx = torch.zeros_like(x)
    for i, (mean, var) in enumerate(met):
        xs, gs = x[i : i + 1], g[i : i + 1]
        ws = torch.ones_like(xs[:, :1]) if w is None else w[i : i + 1].to(x.dtype)
        chosen, n = ws != 0, ws.sum()
        invstd = (var + case.eps).rsqrt()
        xhat = torch.where(chosen, (xs - over(mean, x)) * over(invstd, x), 0)
        through = unless_zero(over(rest * v, x), xhat) * over(invstd, x) + over(rest * u, x)
        dx[i] = torch.where(chosen, over(invstd, x) * gs - ws * through, 0)[0]
        mean_g, mean_gx = (t.sum(axes(x)) / n for t in (torch.where(chosen, gs, 0), torch.where(chosen, gs * xhat, 0)))
        if not (n > 0 and mean_g.isfinite().all() and mean_gx.isfinite().all()):
            continue
        mean_y, mean_yy = ((ws * t).sum(axes(x)) / n for t in (xhat, xhat**2))
        held = rest * v
        v = v + mean_gx - held * mean_yy
        u = u + (mean_g - held * mean_y) * invstd - rest * u
    return dx, {"backward_u": u[None], "backward_v": v[None]}


def unless_zero(weight, x):
    return torch.where(weight == 0, 0.0, weight * x)


def finished(case, y, w):
    """The clamp of the released code, or the paper's layer scaling: padding is no position to average over."""
    c = case.coupling
    if c.clamp is not None:
        return y.clamp(-c.clamp, c.clamp)
    if not c.layer_scaling:
        return y
    inner = tuple(range(1, y.dim()))
    chosen = torch.ones_like(y) if w is None else (w != 0).expand_as(y)
    square = (y**2).sum(inner, True) / chosen.sum(inner, True).clamp_min(1)
    return y * (square + 1e-5).rsqrt()
