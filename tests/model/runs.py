"""One random case through the package, natively and in torch, against the model."""

from typing import Any, NamedTuple

import torch

from batchnorm.kernels import native
from tests.model import package
from tests.model.cases import draw, tensors
from tests.model.compare import apart
from tests.model.gradients import CURVED
from tests.model.groups import UNCENTRED
from tests.model.layer import Model, Refused

HALVES = (torch.float16, torch.bfloat16)
BACKENDS = (None, "reference") if native.built() else ("reference",)
RESULTS = ("y", "dx", "dweight", "dbias")
CONTROLLERS = ("backward_u", "backward_v")


class Difference(NamedTuple):
    """Where the package and the model part: in which precision and backend, at which step, in what."""

    seed: int
    dtype: torch.dtype
    backend: str
    step: int
    what: str
    how: str


class Seen(NamedTuple):
    """What the model says of one step: the run or why it is refused, then the buffers, and the size of their terms."""

    run: Any
    state: dict
    step: int
    sizes: dict


def differences(seed):
    """All of one case: in float64, and in float32 or now and then a half type."""
    case = draw(seed)
    narrow = HALVES[seed // 8 % 2] if seed % 8 == 0 else torch.float32
    truth = followed(case, seed, torch.float64, torch.float32)
    found = of_dtype(case, seed, torch.float64, truth, [None] * len(truth))
    # The values of a case are float32's, so one truth serves both.
    truth = truth if narrow is torch.float32 else followed(case, seed, torch.float64, narrow)
    return found + of_dtype(case, seed, narrow, truth, followed(case, seed, torch.float32, narrow))


def start(case, seed, dtype):
    """Weight, bias and stock statistics."""
    generator = torch.Generator().manual_seed(seed)
    weight, bias = (torch.randn(case.channels, generator=generator).to(dtype) for _ in range(2))
    mean, var = torch.zeros(case.channels), torch.ones(case.channels)
    if case.trained and case.tracks:
        var = torch.rand(case.channels, generator=generator) * 3 + 0.2
        mean = mean if case.coupling.kind in UNCENTRED else torch.randn(case.channels, generator=generator)
    return weight, bias, mean, var


def batch(case, index, seed, dtype):
    """The tensors of one step, rounded to a dtype; a mask stays one."""
    return [None if t is None else t if t.dtype == torch.bool else t.to(dtype) for t in tensors(case, index, seed)]


def followed(case, seed, precision, dtype):
    """What the model in one precision says of every step, of values rounded to dtype."""
    model, seen = Model(case, precision, *start(case, seed, dtype), case.step), []
    for index, step in enumerate(case.steps):
        run = attempted(model.train if step.training else model.eval, *batch(case, index, seed, dtype))
        sizes = {"far": model.far, "psi": model.psi, **dict(zip(CONTROLLERS, model.controllers, strict=True))}
        seen.append(Seen(run, dict(model.state), model.step, sizes))
    return seen


def of_dtype(case, seed, dtype, truth, spelled):
    """The first step at which a backend differs from the model, in everything that differs there."""
    found = []
    for backend in BACKENDS:
        with package.served_by(backend):
            layer = package.layer(case, dtype, *start(case, seed, dtype))
            for index, step in enumerate(case.steps):
                given = batch(case, index, seed, dtype)
                got = attempted(package.run, layer, step.training, *given, case.channels_last)
                if ran_away(truth[index], dtype):
                    break
                wrong = list(compared(case, layer, got, truth[index], spelled[index], dtype))
                found += [Difference(seed, dtype, backend or "native", index, what, how) for what, how in wrong]
                if wrong:
                    break
    return found


def ran_away(seen, dtype):
    """Whether Online's controllers grew beyond float32: which sample overflows first decides all that follows."""
    found = [seen.sizes[name] for name in CONTROLLERS]
    found += [] if isinstance(seen.run, str) else [seen.run.sizes.get("dx", found[0])]
    wide = torch.promote_types(dtype, torch.float32)
    return bool(found[0].any()) and max(float(t.max()) for t in found) > torch.finfo(wide).max / 16


def attempted(call, *given):
    """The run, or why it was refused."""
    try:
        return call(*given)
    except Refused as reason:
        return str(reason)


def compared(case, layer, got, truth, spelled, dtype):
    """What differs after one step, and how."""
    refused = [isinstance(run, str) for run in (got, truth.run)]
    if any(refused) and not all(refused):
        yield "refusal", got if refused[0] else f"accepted; {truth.run}"
        return
    if not any(refused):
        # Gradients go by the sign of an output which half precision has rounded: whole terms come and go with it.
        for name in RESULTS[:1] if dtype in HALVES else RESULTS:
            rough = None if spelled is None else getattr(spelled.run, name).to(dtype)
            times = _times(case, name)
            how = apart(getattr(got, name), getattr(truth.run, name), truth.run.sizes.get(name), rough, dtype, times)
            if how is not None:
                yield name, how
    if not case.tracks:
        return
    if int(layer.num_batches_tracked) != truth.step:
        yield "num_batches_tracked", f"{int(layer.num_batches_tracked)} for {truth.step}"
        return
    for name, buffer in package.state(layer).items():
        if dtype in HALVES and name.startswith("backward_"):
            continue
        how = of_buffer(case, name, buffer, truth, spelled, dtype)
        if how is not None:
            yield name, how


def _times(case, name):
    """How much farther off than the plain form: its output's rounding moves the derivative of a curve too."""
    return 8 if case.activation in CURVED and (name in RESULTS[1:] or name.startswith("backward_")) else 4


def of_buffer(case, name, buffer, truth, spelled, dtype):
    """What is wrong with one buffer, or None."""
    if name not in truth.state and not buffer.any():
        return None  # a window of one batch has no past
    value, rough = (None if seen is None else as_buffer(seen.state[name], buffer) for seen in (truth, spelled))
    if buffer.dtype == torch.int64:
        return None if torch.equal(buffer, value) else f"{buffer.tolist()} for {value.tolist()}"
    backward = name.startswith("backward_")
    size = truth.sizes["far"] if name.endswith("_mean") else None
    if backward:
        size = truth.sizes[name if case.coupling.kind == "online" else "psi"]
    # Backward's memory is made of gradients in the data's dtype, statistics of the data alone.
    narrow = dtype if backward or dtype is torch.float64 else torch.float32
    # A constant channel's mean is rounded, and its variance is then the square of that.
    floor = (truth.sizes["far"] * 2.0**-52).square() if name.endswith("_var") else None
    if floor is not None and case.estimator.sigma:
        # The square of a deviation that eps has entered, less eps.
        floor = floor + case.eps * 2.0**-51
    return apart(buffer, value, size, rough, narrow, _times(case, name), floor)


def as_buffer(value, buffer):
    """A value of the model's state in the buffer's shape."""
    if isinstance(value, torch.Tensor):
        return value
    dtype = torch.int64 if buffer.dtype == torch.int64 else torch.float64
    return torch.as_tensor(value, dtype=dtype).reshape(buffer.shape)
