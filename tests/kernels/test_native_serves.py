"""When the native path may run: one case each of what it must leave alone, with the right result all the same."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import batchnorm
from batchnorm import BatchNormError, kernels
from batchnorm.kernels import native
from batchnorm.layers.step import Native

pytestmark = pytest.mark.skipif(not native.built(), reason="the native kernels were not built")


class Subclass(torch.Tensor):
    pass


def seen_by(make):
    """Whether the predicate says yes to what a layer sees."""
    answers = []

    class Probe(nn.Module):
        def forward(self, x):
            answers.append(native.serves(x))
            return x * 2

    make(Probe())
    return answers[-1]


def test_plain_tensors_are_served():
    assert native.serves(torch.randn(3, 4))
    assert native.serves(nn.Parameter(torch.randn(3, 4)))
    assert native.serves(torch.randn(3, 4, 5, dtype=torch.float64)[:, ::2])
    assert native.serves(torch.randn(3, 4, dtype=torch.bfloat16, requires_grad=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(0, 4),
        lambda: torch.zeros(3),
        lambda: torch.zeros(3, 4, dtype=torch.int64),
        lambda: torch.zeros(3, 4, dtype=torch.complex64),
        lambda: torch.zeros(3, 4, device="meta"),
        lambda: torch.zeros(3, 4).to_sparse(),
        lambda: torch.zeros(3, 4).as_subclass(Subclass),
        lambda: torch._efficientzerotensor((3, 4)),
        lambda: torch._neg_view(torch.ones(3, 4)),
        lambda: torch.randn(3, 4, dtype=torch.complex64).conj().imag,
    ],
    ids=[
        "empty",
        "one axis",
        "int",
        "complex",
        "meta",
        "sparse",
        "subclass",
        "zero tensor",
        "negative view",
        "imag of conj",
    ],
)
def test_other_tensors_are_not(make):
    assert not native.serves(make())


def test_fake_tensors_are_not():
    with torch._subclasses.FakeTensorMode() as mode:
        assert not native.serves(torch.zeros(3, 4))
    assert not native.serves(mode.from_tensor(torch.zeros(3, 4)))


def test_dual_tensors_are_not():
    with forward_ad.dual_level():
        assert not native.serves(forward_ad.make_dual(torch.ones(3, 4), torch.ones(3, 4)))
        assert not native.serves(torch.ones(3, 4))


@pytest.mark.parametrize(
    "transform",
    [
        lambda probe, x: torch.func.vmap(probe)(x[None]),
        lambda probe, x: torch.func.grad(lambda x: probe(x).sum())(x),
        lambda probe, x: torch.func.jvp(probe, (x,), (x,)),
        lambda probe, x: torch.func.functionalize(probe)(x),
        lambda probe, x: make_fx(probe)(x),
        lambda probe, x: make_fx(probe, pre_dispatch=True)(x),
        lambda probe, x: torch.export.export(probe, (x,), strict=False),
        lambda probe, x: torch.jit.trace(probe, x, check_trace=False),
    ],
    ids=["vmap", "grad", "jvp", "functionalize", "make_fx", "make_fx pre-dispatch", "export", "jit trace"],
)
@pytest.mark.filterwarnings("ignore")
def test_transforms_are_not(transform):
    assert not seen_by(lambda probe: transform(probe, torch.randn(3, 4)))


def test_modes_are_not():
    class Dispatch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    class Function(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    for mode in (Dispatch, Function):
        with mode():
            assert not native.serves(torch.randn(3, 4))
    assert native.serves(torch.randn(3, 4))


def test_a_dispatch_mode_sees_torch_operations():
    class Names(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    layer, x = batchnorm.BatchNorm1d(4), torch.randn(8, 4)
    with Names() as mode:
        y = layer(x)
    assert any("batch_norm" in name for name in mode.names)
    assert torch.allclose(y, batchnorm.BatchNorm1d(4)(x), atol=1e-6)


def test_gradients_batched_by_vmap_equal_one_by_one():
    layer = batchnorm.BatchNorm1d(4, activation="relu")
    x = torch.randn(8, 4, requires_grad=True)
    y = layer(x)
    g = torch.randn(3, 8, 4)
    (together,) = torch.autograd.grad(y, x, g, is_grads_batched=True, retain_graph=True)
    for one, grad in zip(together, g, strict=True):
        assert torch.allclose(one, torch.autograd.grad(y, x, grad, retain_graph=True)[0], atol=1e-5)


def test_backends_say_which_serves_and_can_be_told():
    try:
        kernels.use("reference")
        assert "switched off" in kernels.backends()["native"]
        assert kernels.select(torch.zeros(2, 3)).name == "reference"
        kernels.use("base")
        assert "with base" in kernels.backends()["native"]
        assert kernels.select(torch.zeros(2, 3)).name == "native"
        with pytest.raises(
            BatchNormError, match=r"backend must be None or one of reference, native, base.*it was 'mmx'"
        ):
            kernels.use("mmx")
    finally:
        kernels.use()
    assert native._native.instruction_set() == native.instruction_sets()[-1]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_default_device_changes_neither_the_path_nor_the_numbers(device):
    layer, x = batchnorm.BatchNorm2d(4), torch.randn(8, 4, 5, 5, requires_grad=True)
    expected = batchnorm.BatchNorm2d(4)(x)
    (dx,) = torch.autograd.grad(expected.square().sum(), x)
    with torch.device(device):
        y = layer(x)
        (got,) = torch.autograd.grad(y.square().sum(), x)
    assert isinstance(y.grad_fn.call, Native)
    assert torch.equal(y, expected)
    assert torch.equal(got, dx)
    torch.set_default_device(device)
    try:
        assert torch.equal(batchnorm.BatchNorm2d(4, device="cpu")(x), expected)
        passes = kernels.select(x)
        assert passes.name == "native"
        assert passes.reduce(x, None, 2).mean.is_cpu
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (8, 1, 5, 5), (5,), (), (4, 5, 5), (8, 4, 5, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True])
def test_a_residual_that_broadcasts_keeps_the_numbers(backend, shape, dtype, last):
    """At mean 1e6, where torch's own channels_last statistics are off by 2e-5."""
    if backend and last:
        pytest.skip("torch's own sums: docs/numerics.md")
    x = torch.randn(8, 4, 5, 5) + 1e6
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    residual = torch.randn(shape).to(dtype).requires_grad_()
    layer = batchnorm.BatchNorm2d(4, activation="relu", momentum=1.0)
    kernels.use(backend)
    try:
        y = layer(x, residual=residual)
        y.sum().backward()
    finally:
        kernels.use()
    exact = nn.functional.batch_norm(x.double(), None, None, training=True) + residual.double()
    assert y.dtype is (torch.float64 if dtype is torch.float64 and shape else torch.float32)
    assert torch.allclose(y.double(), exact.relu(), atol=2e-6)
    assert torch.allclose(layer.running_var.double(), x.double().var((0, 2, 3)), rtol=3e-7)
    positive = (exact > 0).double().sum_to_size(shape)
    assert torch.allclose(residual.grad.double(), positive, rtol=1e-2)


def test_a_residual_larger_than_the_output_adds_axes_as_plus_does():
    x, residual = torch.randn(8, 4), torch.randn(3, 8, 4)
    y = batchnorm.BatchNorm1d(4)(x, residual=residual)
    assert torch.allclose(y, batchnorm.BatchNorm1d(4)(x) + residual, atol=1e-6)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("slope", [-0.3, 0.0, 0.2, 1.5])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("how", ["", "residual", "broadcast", "mask"])
def test_leaky_relu_of_any_slope_has_its_derivative(backend, slope, training, how):
    layer = batchnorm.BatchNorm1d(3, activation="leaky_relu", negative_slope=slope, dtype=torch.float64).train(training)
    layer.paused = True
    x = torch.randn(6, 3, 2, dtype=torch.float64, requires_grad=True)
    residual = torch.randn((6, 3, 2) if how == "residual" else (3, 1), dtype=torch.float64, requires_grad=True)
    given = {"mask": torch.tensor([[1, 1], [1, 0], [1, 1], [0, 0], [1, 1], [1, 1]]).bool()} if how == "mask" else {}
    kernels.use(backend)
    try:
        assert torch.autograd.gradcheck(
            lambda x, r: layer(x, residual=None if how == "" else r, **given), (x, residual), atol=1e-6
        )
    finally:
        kernels.use()
    plain = batchnorm.BatchNorm1d(3, dtype=torch.float64).train(training)
    z = plain(x, **given) if how == "" else plain(x, **given) + residual
    expected = nn.functional.leaky_relu(z, slope)
    expected = torch.where(given["mask"][:, None], expected, 0) if given else expected
    assert torch.allclose(layer(x, residual=None if how == "" else residual, **given), expected, atol=1e-9)
