"""A layer on the device beside its twins in torch: in float64, the truth, and in its own dtype, which rounds too."""

import copy
import warnings

import torch

from batchnorm import kernels
from batchnorm.kernels import triton
from tests.model.compare import apart, by_channel


def compare(layer, batches, device, dtype=torch.float32, last=False, times=4):
    """Train on every batch `(x, g, given)`; outputs, gradients and buffers within rounding of the truth."""
    ours = layer.to(device)
    truth, rough = copy.deepcopy(layer).double().cpu(), copy.deepcopy(layer).cpu()
    for x, g, given in batches:
        x = x.to(dtype)
        got = _step(ours, x, g, given, device, last)
        with _in_torch():
            exact = _step(truth, x.double(), g.to(dtype).double(), given, "cpu", last)
            theirs = _step(rough, x, g, given, "cpu", last)
        for name, value in got.items():
            size = _terms(x) if name == "y" else None
            if name in ("dweight", "dbias"):  # sums, in which gradients cancel
                size = g.double().nan_to_num(0.0, 0.0, 0.0).movedim(1, 0).flatten(1).abs().amax(1)
            how = apart(value, exact[name], size, None if dtype is torch.float64 else theirs[name], dtype, times)
            assert how is None, (name, how)
    for name, buffer in ours.named_buffers():
        value = truth.get_buffer(name)
        if not buffer.is_floating_point():
            assert torch.equal(buffer.cpu(), value), name
            continue
        # Backward's memory is made of gradients in the data's dtype, statistics of the data alone.
        narrow = dtype if name.startswith("backward_") else torch.float32
        size = value.nan_to_num(0.0, 0.0, 0.0).abs().max().expand(len(by_channel(value)))
        how = apart(
            buffer.cpu(), value, size, None if dtype is torch.float64 else rough.get_buffer(name), narrow, times
        )
        assert how is None, (name, how)


def _terms(x):
    """The normalised values, which shifts and an activation may leave little of, at most."""
    values = x.double().nan_to_num(0.0, 0.0, 0.0).movedim(1, 0).flatten(1)
    return (values - values.mean(1, True)).abs().amax(1) / (values.var(1, correction=0) + 1e-5).sqrt()


class _in_torch:
    def __enter__(self):
        self.was = triton.interpreted()
        kernels.use("reference")

    def __exit__(self, *_):
        kernels.use()
        triton.interpret(self.was)


def _step(layer, x, g, given, device, last):
    layer.train().zero_grad()
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    x = x.detach().to(device).clone().requires_grad_()
    moved = {}
    for name, value in given.items():
        if value.is_floating_point() and name == "residual":
            value = value.to(x.dtype)
        moved[name] = value.detach().to(device).clone()
        if name == "residual":
            moved[name].requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, of infinities in the interpreter
        y = layer(x, **moved)
        y.backward(g.to(y))
    found = {"y": y.detach().cpu(), "dx": x.grad.cpu()}
    found |= {f"d{name}": p.grad.cpu() for name, p in layer.named_parameters() if p.requires_grad}
    if "residual" in moved:
        found["dresidual"] = moved["residual"].grad.cpu()
    return found
