"""A case as a layer of the package, and a step of it in the same words as the model's."""

import contextlib

import torch

from batchnorm import BatchNorm, BatchNormError, kernels
from batchnorm import layers as choices
from batchnorm.layers import couplings as exact
from tests.model.layer import Refused, Run


def recipe(case):
    """The five choices of the package."""
    extent = (
        choices.Batch()
        if case.extent.size is None
        else choices.Ghost(case.extent.size, "sequential" if case.extent.sequential else "pooled")
    )
    policy = choices.Policy(
        case.policy.nonfinite, case.policy.too_few, "reliability" if case.policy.reliability else "frequency"
    )
    mixture = case.inference
    inference = choices.Stored() if mixture is None else choices.Mixture(mixture.weight, mixture.prior, mixture.per)
    return {
        "extent": extent, "estimator": estimator(case.estimator), "coupling": coupling(case.coupling),
        "inference": inference, "policy": policy,
    }  # fmt: skip


def estimator(e):
    average = {"sigma": e.sigma, "total": e.total, "correction": e.correction}
    if e.kind == "ema":
        decay = (lambda step: 1 - e.momentum(step)) if callable(e.momentum) else 0.9
        return choices.EMA(decay, e.debias, **average)
    if e.kind == "window":
        return choices.Window(e.size, e.total, correction=e.correction)
    if e.kind == "pooled":
        return choices.Pooled(e.correction)
    return choices.Cumulative(**average) if e.kind == "cumulative" else choices.Diminishing(e.power, e.scale, **average)


def coupling(c):
    if c.kind == "renorm":
        return choices.Renorm(c.r_max, c.d_max, schedule(c.schedule))
    if c.kind == "mabn":
        return choices.MABN(c.window, max(c.r_max, 1.0), c.warmup, c.correct_after)
    if c.kind == "power":
        return choices.PowerNorm(c.backward_decay, c.warmup)
    if c.kind == "unified":
        return choices.UnifiedNorm(c.window, c.r_max, c.warmup, c.backward_decay, c.filter_outliers)
    if c.kind == "online":
        return choices.OnlineNorm(c.backward_decay, c.clamp, c.layer_scaling)
    if c.kind == "population":
        return exact.PopulationCoupling(c.gradient)
    return exact.BatchCoupling() if c.kind == "batch" else exact.SecondMoment()


def schedule(chosen):
    return (lambda done: chosen(done)) if callable(chosen) else chosen


def layer(case, dtype, weight, bias, mean, var):
    """The layer with the parameters and the stock statistics of the case."""
    options = recipe(case)
    if not callable(case.estimator.momentum):
        options["momentum"] = case.estimator.momentum
    made = BatchNorm(
        case.channels, eps=case.eps, track_running_stats=case.tracks, dtype=dtype, activation=case.activation,
        negative_slope=case.slope, **options,
    )  # fmt: skip
    state = {"weight": weight, "bias": bias}
    if case.tracks:
        state |= {"running_mean": mean, "running_var": var, "num_batches_tracked": torch.tensor(case.step)}
    made.load_state_dict(state, strict=False)
    return made


@contextlib.contextmanager
def served_by(backend):
    """The backend of the CPU; None is the best there is."""
    kernels.use(backend)
    try:
        yield
    finally:
        kernels.use()


def run(made, training, x, g, w, residual, last):
    """One forward and backward."""
    made.train(training).zero_grad()
    memory = torch.channels_last if last else torch.contiguous_format
    x = x.to(made.weight.dtype).contiguous(memory_format=memory).detach().requires_grad_()
    given = {} if w is None else {"mask" if w.dtype == torch.bool else "weights": w.squeeze(1)}
    if residual is not None:
        given["residual"] = residual.to(x.dtype)
    try:
        y = made(x, **given)
    except BatchNormError as error:
        raise Refused(str(error)) from None
    y.backward(g.to(x.dtype))
    zero = torch.zeros_like(made.weight)
    grads = [zero if p.grad is None else p.grad.clone() for p in (made.weight, made.bias)]
    return Run(y.detach(), torch.zeros_like(x) if x.grad is None else x.grad, *grads, {})


def state(made):
    """The buffers by name."""
    return {name: buffer for name, buffer in made.named_buffers() if name != "num_batches_tracked"}
