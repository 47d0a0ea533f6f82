"""A batch norm layer written out: slow, one group at a time, in plain torch operations of one precision.

In float64 it says what is right; in float32 it is the form that a user would spell. The rules are those of the papers
and of the documented policies; a weight of 0 leaves a value out, be it NaN or infinite.
"""

import torch

from tests.model import couplings, estimators, online, remembering
from tests.model.gradients import Run, Used, by_autograd, by_hand
from tests.model.groups import UNCENTRED, Moments, axes, bounds, moments, pooled, times

ESTIMATES = ("mabn", "power", "unified", "online")


class Refused(Exception):
    """What must be an error; nothing is changed."""


class Model:
    """The layer of a case; `state` holds the buffers by the names of a state_dict."""

    def __init__(self, case, dtype, weight, bias, mean, var, step):
        self.case, self.dtype, self.step = case, dtype, step
        self.weight, self.bias = weight.to(dtype), bias.to(dtype)
        self.state = {"running_mean": mean.to(dtype), "running_var": var.to(dtype)}
        self.centred = case.coupling.kind not in UNCENTRED
        # How large the values are that the running mean and the backward's memory are made of.
        self.far = self.psi = torch.zeros_like(self.weight)
        self.controllers = self.psi, self.psi
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
        gradients = by_hand if kind in ESTIMATES else by_autograd
        return gradients(self, used, *leaves, g.to(self.dtype), w, residual)

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
        windowed = self.case.estimator.kind == "window"
        self.far = torch.maximum(self.far, most) if windowed else (1 - gain) * self.far + gain * most

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
        if (
            w is not None
            and not self.case.policy.reliability
            and 0 < n <= 1 + 1e-4
            and not Moments(n, n2, None, None).few
        ):
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
            if mixture is None:
                used.append(Used(a, b, Moments(1.0, 1.0, mean, var), mean, var, stored=True))
                continue
            m = moments(leaves[0][a:b], None if w is None else w[a:b], self.centred)
            if m.n > 0:
                used.append(Used(a, b, m, *self.mixed(m, x, mixture)))
        return by_autograd(self, used, *leaves, g.to(self.dtype), w, residual)

    def mixed(self, m, x, mixture):
        """Moments mix as E[x] and E[x^2]; n samples at hand weigh n / (n + prior)."""
        mean, var = self.state["running_mean"], self.state["running_var"]
        samples = m.n / (x.numel() // (x.shape[0] * x.shape[1]))
        a = mixture.weight if mixture.weight is not None else samples / (samples + mixture.prior)
        mixed = times(a, m.var) + times(1 - a, var) + times(a * (1 - a), (m.mean - mean) ** 2)
        return times(a, m.mean) + times(1 - a, mean), mixed
