"""PyTorch's own module database (constructor and forward inputs) driven against our layers.

From `torch.testing._internal.common_modules`: its entries for BatchNorm1d, 2d and 3d, on the CPU, in float64, float32
and bfloat16. What cannot apply: the database's CUDA, MPS and XPU cases (no such device here) and its TorchScript flags
(scripting is deprecated in torch itself, and our forward is not scriptable).
"""

import copy
import pickle

import pytest
import torch
from torch import nn

import batchnorm

OURS = {getattr(nn, name): getattr(batchnorm, name) for name in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")}
# The database takes seconds to import: when the first test asks for it, and in one process.
pytestmark = [
    pytest.mark.xdist_group("torch's module database"),
    pytest.mark.parametrize("theirs", OURS, ids=lambda theirs: theirs.__name__),
]


def cases(theirs, *trainings):
    """Torch's own cases of one class, made for training and for evaluation."""
    common_modules = pytest.importorskip("torch.testing._internal.common_modules")
    (info,) = (info for info in common_modules.module_db if info.module_cls is theirs)
    for training in trainings:
        yield from info.module_inputs_func(
            info, device="cpu", dtype=torch.float64, requires_grad=True, training=training
        )


def build(theirs, case, dtype=torch.float64):
    args, kwargs = case.constructor_input.args, case.constructor_input.kwargs
    stock, ours = theirs(*args, dtype=dtype, **kwargs), OURS[theirs](*args, dtype=dtype, **kwargs)
    (x,) = case.forward_input.args
    return stock, ours, x.detach()


def test_the_database_has_many_cases(theirs):
    assert len(list(cases(theirs, True))) >= 5


@pytest.mark.parametrize("training", [True, False])
def test_forward_backward_and_state(theirs, training, subtests):
    for case in cases(theirs, True, False):
        with subtests.test(case.desc):
            stock, ours, x = build(theirs, case)
            results = []
            for module in (stock.train(training), ours.train(training)):
                leaf = x.clone().requires_grad_()
                y = module(leaf)
                y.square().sum().backward()
                state = dict(module.state_dict())
                if case.desc == "zero_batch":
                    state.pop("num_batches_tracked")  # an empty batch does not count here (docs/deviations.md)
                results.append((y, leaf.grad, *(p.grad for p in module.parameters()), *state.values()))
            assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(*results, strict=True))
            assert list(stock.state_dict()) == list(ours.state_dict())
            fresh = build(theirs, case)[1]
            fresh(x)
            fresh.load_state_dict(stock.state_dict(), strict=True)
            assert torch.allclose(fresh.eval()(x), copy.deepcopy(ours).eval()(x), rtol=1e-12, atol=1e-12)
            again = pickle.loads(pickle.dumps(ours))
            assert torch.equal(again.eval()(x), ours.eval()(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(theirs, dtype, subtests):
    """Within the dtype's own rounding of float64; torch is no yardstick here, its bfloat16 path being off by 5 %."""
    for case in cases(theirs, True):
        with subtests.test(case.desc):
            _, ours, x = build(theirs, case, dtype)
            x = x.to(dtype)
            exact, _, _ = build(theirs, case)
            y = ours(x)
            exact.load_state_dict(ours.state_dict())
            expected = exact(x.double())
            assert y.dtype == dtype
            rounding = 4 * torch.finfo(dtype).eps
            assert torch.allclose(y.double(), expected, rtol=rounding, atol=rounding)


def test_memory_formats(theirs, subtests):
    for case in cases(theirs, True):
        with subtests.test(case.desc):
            stock, ours, x = build(theirs, case)
            formats = {4: torch.channels_last, 5: torch.channels_last_3d}
            if x.dim() in formats:
                x = x.to(memory_format=formats[x.dim()])
            else:
                x = x.transpose(0, -1).contiguous().transpose(0, -1)
            a, b = stock(x), ours(x)
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)
            assert a.stride() == b.stride()


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_gradcheck_and_gradgradcheck(theirs, training, subtests):
    for case in cases(theirs, True, False):
        with subtests.test(case.desc):
            _, ours, x = build(theirs, case)
            ours.train(training)
            x = x[:3].clone().requires_grad_()
            names = [name for name, _ in ours.named_parameters()]

            def forward(x, *parameters, ours=ours, names=names):
                state = dict(zip(names, parameters, strict=True))
                return torch.func.functional_call(copy.deepcopy(ours), state, (x,))

            inputs = (x, *(p.detach().clone().requires_grad_() for p in ours.parameters()))
            assert torch.autograd.gradcheck(forward, inputs, check_forward_ad=training)
            assert torch.autograd.gradgradcheck(forward, inputs)
