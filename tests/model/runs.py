"""One random case through the package, natively and in torch, against the model."""

from typing import NamedTuple

import torch

from batchnorm.kernels import native
from tests.model import package
from tests.model.cases import draw, tensors
from tests.model.compare import NAMES, apart
from tests.model.groups import over
from tests.model.layer import UNCENTRED, Model, Refused

HALVES = (torch.float16, torch.bfloat16)
BACKENDS = (None, "reference") if native.built() else ("reference",)


class Difference(NamedTuple):
    """Where the package and the model part: in which precision and backend, at which step, in what."""

    seed: int
    dtype: torch.dtype
    backend: str | None
    step: int
    what: str
    how: str


def differences(seed):
    """All of one case: in float64, and in float32 or a half type."""
    case = draw(seed)
    narrow = HALVES[seed // 8 % 2] if seed % 8 == 0 else torch.float32
    return [found for dtype in (torch.float64, narrow) for found in of_dtype(case, seed, dtype)]


def start(case, seed, dtype):
    """Weight, bias and stock statistics."""
    generator = torch.Generator().manual_seed(seed)
    weight, bias = (torch.randn(case.channels, generator=generator).to(dtype) for _ in range(2))
    mean, var = torch.zeros(case.channels), torch.ones(case.channels)
    if case.trained and case.tracks:
        var = torch.rand(case.channels, generator=generator) * 3 + 0.2
        mean = mean if case.coupling.kind in UNCENTRED else torch.randn(case.channels, generator=generator)
    return weight, bias, mean, var


def of_dtype(case, seed, dtype):
    """The first step at which a backend differs from the model, in everything that differs there."""
    given = start(case, seed, dtype)
    truth = Model(case, torch.float64, *given, case.step)
    spelled = None if dtype is torch.float64 else Model(case, torch.float32, *given, case.step)
    layers = {}
    for backend in BACKENDS:
        with package.served_by(backend):
            layers[backend] = package.layer(case, dtype, *given)
    found = []
    for index, step in enumerate(case.steps):
        x, g, w, residual = (None if t is None else t if t.dtype == torch.bool else t.to(dtype) for t in tensors(case, index, seed))
        expected, rough = (None if m is None else outcome(m, step, x, g, w, residual) for m in (truth, spelled))
        for backend, layer in list(layers.items()):
            with package.served_by(backend):
                got = attempted(package.run, layer, step.training, x, g, w, residual, case.channels_last)
            wrong = list(compared(case, truth, spelled, layer, got, expected, rough, dtype))
            found += [Difference(seed, dtype, backend, index, what, how) for what, how in wrong]
            if wrong:
                del layers[backend]
    return found


def outcome(model, step, *given):
    return attempted(model.train if step.training else model.eval, *given)


def attempted(call, *given):
    """The run, or why it was refused."""
    try:
        return call(*given)
    except Refused as reason:
        return str(reason)


def compared(case, truth, spelled, layer, got, expected, rough, dtype):
    """What differs after one step, and how."""
    if isinstance(got, str) or isinstance(expected, str):
        if not (isinstance(got, str) and isinstance(expected, str)):
            yield "refusal", f"{got if isinstance(got, str) else 'none'} for {expected if isinstance(expected, str) else 'none'}"
            return
    else:
        for name, size in NAMES:
            others = None if rough is None or isinstance(rough, str) else getattr(rough, name).to(dtype)
            how = apart(getattr(got, name), getattr(expected, name), expected.sizes.get(size), others)
            if how is not None:
                yield name, how
    if not case.tracks:
        return
    if int(layer.num_batches_tracked) != truth.step:
        yield "num_batches_tracked", f"{int(layer.num_batches_tracked)} for {truth.step}"
        return
    for name, buffer in package.state(layer).items():
        if name not in truth.state and (not buffer.numel() or not buffer.any()):
            continue  # a window of this batch alone has no past
        values = [None if m is None else as_buffer(m.state[name], buffer) for m in (truth, spelled)]
        backward = name.startswith("backward_") and not name.endswith("seen")
        size = truth.psi if backward else truth.far if name in ("running_mean", "window_mean") else None
        if buffer.dtype == torch.int64:
            if not torch.equal(buffer, values[0]):
                yield name, f"{buffer.tolist()} for {values[0].tolist()}"
            continue
        how = apart(buffer, values[0], size, values[1], dtype if backward else None)
        if how is not None:
            yield name, how


def as_buffer(value, buffer):
    """A value of the model's state in the buffer's shape."""
    if isinstance(value, torch.Tensor):
        return value
    dtype = torch.int64 if buffer.dtype == torch.int64 else torch.float64
    return torch.as_tensor(value, dtype=dtype).reshape(buffer.shape)


assert over is not None
