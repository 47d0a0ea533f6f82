"""A batch norm layer written out: slow, one group at a time, in plain torch operations of one precision.

In float64 it says what is right; in float32 it is the form that a user would spell. It decides nothing by the package:
the rules are those of the papers and of the documented policies, and a weight of 0 leaves a value out, be it NaN or infinite.
"""

from typing import NamedTuple

import torch
from torch.nn import functional

from tests.model import couplings, estimators, online, remembering
from tests.model.groups import Moments, axes, bounds, moments, over, pooled, times

UNCENTRED = ("second moment", "mabn", "power", "unified")
ESTIMATES = ("mabn", "power", "unified", "online")


class Refused(Exception):
    """What must be an error; nothing is changed."""


class Run(NamedTuple):
    """Output and gradients, with the size of the terms they are made of, per channel."""

    y: torch.Tensor
    dx: torch.Tensor
    dweight: torch.Tensor
    dbias: torch.Tensor
    sizes: dict


class Used(NamedTuple):
    """What normalised one group; quiet scales the gradient and not the output, few marks the running statistics."""

    first: int
    last: int
    m: Moments
    mean: torch.Tensor
    var: torch.Tensor
    ratio: torch.Tensor | float = 1.0
    offset: torch.Tensor | float = 0.0
    quiet: torch.Tensor | float = 1.0
    few: bool = False


class Model:
    """The layer of a case; `state` holds the buffers by the names of a state_dict."""

    def __init__(self, case, dtype, weight, bias, mean, var, step):
        self.case, self.dtype, self.step = case, dtype, step
        self.weight, self.bias = weight.to(dtype), bias.to(dtype)
        self.state = {"running_mean": mean.to(dtype), "running_var": var.to(dtype)}
        self.centred = case.coupling.kind not in UNCENTRED
        # How large the values are that the running mean and the backward's memory are made of.
        self.far = self.psi = torch.zeros_like(self.weight)
        if case.tracks:
            trained = bool((mean != 0).any() or (var != 1).any())
            estimators.start(case.estimator, self.state, trained)
            remembering.start(case.coupling, self.state)
            if case.coupling.kind == "online":
                online.start(self.state)

    # Training ----------------------------------------------------------------------------------------------------

    def train(self, x, g, w=None, residual=None):
        """One forward and backward, after which the statistics have moved."""
        if x.numel() == 0:
            return self.nothing(x)
        kind = self.case.coupling.kind
        if not self.case.tracks and kind not in ("batch", "second moment"):
            kind = "second moment" if kind in UNCENTRED else "batch"
        self.kind = kind
        leaves = [t.to(self.dtype).detach().requires_grad_() for t in (x, self.weight, self.bias)]
        if kind in ESTIMATES:
            leaves = [t.detach() for t in leaves]
        used, after = self.forward(leaves[0], w)
        self.state.update({name: self.stored(value) for name, value in after.items()})
        gradients = self.by_hand if kind in ESTIMATES else self.by_autograd
        return gradients(used, *leaves, g.to(self.dtype), w, residual)

    def stored(self, value):
        """A number as a buffer of this precision holds it."""
        if isinstance(value, list):
            return [self.stored(one) for one in value]
        return float(torch.tensor(value, dtype=self.dtype)) if isinstance(value, float) else value

    def nothing(self, x):
        """An empty batch changes nothing."""
        zero = torch.zeros_like(self.weight)
        return Run(x.to(self.dtype), torch.zeros_like(x, dtype=self.dtype), zero, zero, {})

    def forward(self, x, w):
        """What normalises each group, and the buffers after it, backward's memory apart."""
        case, step = self.case, self.step + 1
        self.step_of_forward, self.outlier, size = step, False, case.extent.size
        parts = [(a, b, moments(x[a:b], None if w is None else w[a:b], self.centred)) for a, b in bounds(len(x), size)]
        present = [m for _, _, m in parts if m.n > 0]
        self.check(present, w)
        if not present:
            return [], {}
        if case.extent.sequential and case.tracks:
            return self.stream(x, parts)
        whole = pooled([Moments(m.n, m.n2, m.mean.detach(), m.var.detach()) for m in present])
        self.outlier = self.kind in remembering.FORWARD and remembering.is_outlier(case, whole, self.state, step)
        used = [self.normaliser(a, b, m, self.state, step, step) for a, b, m in parts if m.n > 0]
        if not case.tracks or all(one.few for one in used):
            return used, {}
        new = estimators.moved(case.estimator, self.state, whole, step, case.eps, case.policy.reliability)
        if not self.enters(whole, new):
            return used, {}
        self.widen(x, estimators.gain(case.estimator, self.state, whole.n, step))
        if self.kind in remembering.FORWARD:
            new.update(remembering.remembered_forward(case, whole, self.state, self.outlier))
        self.step = step
        return used, new

    def widen(self, x, gain):
        """Values of this size enter the running mean."""
        most = torch.where(x.isfinite(), x, 0).detach().abs().amax(axes(x))
        self.far = (1 - gain) * self.far + gain * most if self.case.estimator.kind != "window" else torch.maximum(self.far, most)

    def stream(self, x, parts):
        """Group after group, each meeting the statistics its predecessor left."""
        used, entered, state, case = [], 0, dict(self.state), self.case
        for i, (a, b, m) in enumerate(parts):
            if m.n == 0:
                continue
            own_step = self.step * len(parts) + i + 1
            used.append(self.normaliser(a, b, m, state, self.step + 1, own_step))
            fixed = Moments(m.n, m.n2, m.mean.detach(), m.var.detach())
            new = estimators.moved(case.estimator, state, fixed, own_step, case.eps, case.policy.reliability)
            own = fixed.corrected(case.estimator.correction, case.policy.reliability)
            if not used[-1].few and self.enters(fixed, {"running_var": own}):
                self.widen(x[a:b], estimators.gain(case.estimator, state, m.n, own_step))
                state.update(new)
                entered += 1
        self.step += entered > 0
        return used, state

    def check(self, present, w):
        """Weights that are repetitions must sum to more than one."""
        n, n2 = sum(m.n for m in present), sum(m.n2 for m in present)
        if w is not None and not self.case.policy.reliability and 0 < n <= 1 + 1e-4 and n**2 > n2 * (1 + 1e-12):
            raise Refused("weights sum to one")

    def normaliser(self, first, last, m, state, step, own_step):
        """The statistics of one group: the coupling's, or the running ones for a group of one value."""
        case, ones = self.case, torch.ones_like(m.mean)
        if self.kind == "online":
            return Used(first, last, m, state["running_mean"], state["running_var"])
        if m.few:
            if not case.tracks or case.policy.too_few != "population":
                raise Refused("one value")
            return Used(first, last, m, state["running_mean"], state["running_var"], ones, few=True)
        if self.kind in remembering.FORWARD:
            q, ratio, quiet, _ = remembering.FORWARD[self.kind](case, m, state, step, self.outlier)
            return Used(first, last, m, torch.zeros_like(q), q, ratio, 0.0, quiet)
        mean, var, ratio, offset = couplings.EXACT[self.kind](case, m, state, step, own_step)
        return Used(first, last, m, mean, var, ratio, offset)

    def enters(self, batch, new):
        """Whether a batch that is not empty may move the statistics."""
        var = new.get("running_var", self.state["running_var"])
        if self.case.policy.nonfinite == "propagate" or all(t.isfinite().all() for t in (batch.mean, batch.var, var)):
            return True
        if self.case.policy.nonfinite == "raise":
            raise Refused("not finite")
        return False

    # Output and gradients ----------------------------------------------------------------------------------------

    def affine(self, used, x, weight, bias, w):
        """The output before residual and activation."""
        parts = [torch.zeros_like(x[:0])]
        for one in used:
            xs, at = self.present(x, w, one), lambda v: over(v, x) if isinstance(v, torch.Tensor) else v
            y = (xs - at(one.mean)) / at((one.var + self.case.eps).sqrt()) * at(one.ratio) + at(one.offset)
            y = y * at(weight) + at(bias)
            parts.append(y if w is None else torch.where(w[one.first : one.last] != 0, y, 0))
        return self.placed(used, parts[1:], x)

    def present(self, x, w, one):
        """The values of a group, with zeros in the place of its padding."""
        xs = x[one.first : one.last]
        return xs if w is None else torch.where(w[one.first : one.last] != 0, xs, 0)

    def placed(self, used, parts, x):
        """Rows of the groups at their places, zero where a group is absent."""
        rows, at = [], 0
        for one, part in zip(used, parts, strict=True):
            rows += [torch.zeros_like(x[at : one.first]), part]
            at = one.last
        return torch.cat([*rows, torch.zeros_like(x[at:])])

    def finished(self, y, w, residual):
        """What follows the affine map: a clamp, the residual, the activation; zero where there is no sample."""
        if self.case.coupling.kind == "online":
            y = online.finished(self.case, y, w)
        if residual is not None:
            y = y + residual.to(self.dtype)
        if self.case.activation == "relu":
            y = functional.relu(y)
        elif self.case.activation == "leaky_relu":
            y = functional.leaky_relu(y, self.case.slope)
        return y if w is None else torch.where(w != 0, y, 0)

    def by_autograd(self, used, x, weight, bias, g, w, residual):
        """The derivative of the forward, by autograd."""
        y = self.finished(self.affine(used, x, weight, bias, w), w, residual)
        grads = torch.autograd.grad(y, (x, weight, bias), g, allow_unused=True) if used else (None,) * 3
        dx, dw, db = (torch.zeros_like(t) if d is None else d for d, t in zip(grads, (x, weight, bias), strict=True))
        if w is not None:
            dx = torch.where(w != 0, dx, 0)
        return Run(y.detach(), dx, dw, db, self.sizes(used, x.detach(), g, w))

    def by_hand(self, used, x, weight, bias, g, w, residual):
        """The estimate of the paper in the place of the derivative."""
        leaf = self.affine(used, x, weight, bias, w).requires_grad_()
        y = self.finished(leaf, w, residual)
        (g,) = torch.autograd.grad(y, leaf, g)
        g = g if w is None else torch.where(w != 0, g, 0)
        xhats = [self.xhat(one, x, w) for one in used]
        sums = [((g[o.first : o.last] * xhat).sum(axes(x)), g[o.first : o.last].sum(axes(x))) for o, xhat in zip(used, xhats, strict=True)]
        zero = torch.zeros_like(weight)
        dw, db = sum((sx * o.ratio for o, (sx, _) in zip(used, sums, strict=True)), zero), sum((s for _, s in sums), zero)
        sizes = self.sizes(used, x, g, w)
        if not used:
            return Run(y.detach(), torch.zeros_like(x), dw, db, sizes)
        if self.kind == "online":
            full = {one.first: (one.mean, one.var) for one in used}
            met = [full.get(i, (zero, zero + 1)) for i in range(len(x))]
            dx, new = online.pulled(self.case, self.state, x, g * over(weight, x), w, met)
        else:
            dx, new = self.with_memory(used, x, weight, g, w, xhats, sums)
        self.state.update(new)
        return Run(y.detach(), dx, dw, db, sizes)

    def xhat(self, one, x, w):
        xs = (self.present(x, w, one) - over(one.mean, x)) / over((one.var + self.case.eps).sqrt(), x)
        return xs if w is None else torch.where(w[one.first : one.last] != 0, xs, 0)

    def with_memory(self, used, x, weight, g, w, xhats, sums):
        """dx = (g - psi * xhat) / sqrt(q + eps) with g at the normalised data, and what the memory holds after it."""
        scales = [weight * o.ratio * o.quiet for o in used]
        live = [i for i, one in enumerate(used) if not one.few]
        psi = {i: scales[i] * sums[i][0] / used[i].m.n for i in live}
        counts = [used[i].m.n for i in live]
        squares = [used[i].m.var / (used[i].var + self.case.eps) for i in live]
        new = {}
        if live:
            step = self.step_of_forward
            stands, new = remembering.pulled(self.case, self.state, step, [psi[i] for i in live], counts, squares, self.outlier)
            psi.update(zip(live, stands, strict=True))
        parts = []
        for i, one in enumerate(used):
            rows, root = slice(one.first, one.last), over((one.var + self.case.eps).sqrt(), x)
            through = online.unless_zero(over(psi[i], x), xhats[i]) if i in psi else torch.zeros_like(xhats[i])
            through = through if w is None else w[rows].to(self.dtype) * through
            dx = (g[rows] * over(scales[i], x) - through) / root
            parts.append(dx if w is None else torch.where(w[rows] != 0, dx, 0))
        finite = all(t.isfinite().all() for pair in sums for t in pair)
        return self.placed(used, parts, x), new if finite else {}

    def sizes(self, used, x, g, w):
        """How large the terms are that cancel in outputs and gradients, per channel."""
        zero = torch.zeros_like(self.weight)
        out = {name: zero for name in ("y", "dx", "dw", "db", "psi")}
        for one in used:
            xhat, gs = self.xhat(one, x, w).detach().abs(), g[one.first : one.last].abs()
            far, most = xhat.amax(axes(x)), gs.amax(axes(x))
            ratio = torch.as_tensor(one.ratio * one.quiet, dtype=self.dtype)
            scale = (self.weight * ratio).abs()
            found = {
                "y": scale * far + (one.offset * self.weight + self.bias).abs(),
                "dx": scale / (one.var.detach() + self.case.eps).sqrt() * most * (1 + far**2),
                "dw": ((gs * xhat).sum(axes(x)) + gs.sum(axes(x))) * (1 + ratio.abs()),
                "db": gs.sum(axes(x)),
                "psi": scale * most * far,
            }
            out = {name: out[name] + found[name].nan_to_num(0, 0, 0) for name in out}
        self.psi = torch.maximum(self.psi, out["psi"])
        return out

    # Inference ---------------------------------------------------------------------------------------------------

    def eval(self, x, g, w=None, residual=None):
        """Normalise with the stored statistics, or with a mixture of them and what is at hand."""
        if not self.case.tracks:
            return self.train(x, g, w, residual)
        if x.numel() == 0:
            return self.nothing(x)
        leaves = [t.to(self.dtype).detach().requires_grad_() for t in (x, self.weight, self.bias)]
        mean, var, mixture = self.state["running_mean"], self.state["running_var"], self.case.inference
        per = None if mixture is None else 1 if mixture.per == "example" else None
        used = []
        for a, b in bounds(len(x), per):
            m = Moments(1.0, 1.0, mean, var) if mixture is None else moments(leaves[0][a:b], None if w is None else w[a:b], self.centred)
            if m.n > 0:
                used.append(Used(a, b, m, *(self.mixed(m, x, mixture) if mixture else (mean, var))))
        return self.by_autograd(used, *leaves, g.to(self.dtype), w, residual)

    def mixed(self, m, x, mixture):
        """Moments mix as E[x] and E[x^2]; n samples at hand weigh n / (n + prior)."""
        mean, var = self.state["running_mean"], self.state["running_var"]
        samples = m.n / (x.numel() // (x.shape[0] * x.shape[1]))
        a = mixture.weight if mixture.weight is not None else samples / (samples + mixture.prior)
        mixed = times(a, m.var) + times(1 - a, var) + times(a * (1 - a), (m.mean - mean) ** 2)
        return times(a, m.mean) + times(1 - a, mean), mixed
