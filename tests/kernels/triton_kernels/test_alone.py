"""Small tensors in one launch each way: which are small, and that it is the same step."""

import copy

import pytest
import torch

import batchnorm
from batchnorm.kernels.triton import geometry
from batchnorm.layers import Ghost, Policy

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of infinities in the interpreter


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels that run."""
    from batchnorm.kernels.triton import alone, backward, forward, reduction, rule

    names = []
    for module in (alone, backward, forward, reduction, rule):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            kernel = getattr(module, name)
            kind, run = type(kernel), kernel.run

            def noted(*given, name=name, run=run, **more):
                names.append(name)
                return run(*given, **more)

            if kernel.fn.__module__ == module.__name__:
                monkeypatch.setattr(kernel, "run", noted)
            assert kind.__name__ in ("JITFunction", "InterpretedFunction")
    return names


def step(layer, x, device, **given):
    x = x.detach().to(device).requires_grad_()
    y = layer(x, **given)
    y.backward(torch.cos(torch.arange(y.numel(), device=device)).reshape(y.shape).to(y))
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters()), *layer.buffers()]


THREE = ["reduce_kernel", "step_kernel", "apply_kernel"], ["sums_kernel", "pull_kernel", "gradient_kernel"]
ONE = ["forward_kernel"], ["backward_kernel"]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("tiles", "groups", "one"), [(8, 1, True), (9, 1, False), (4, 2, True), (5, 2, False)])
def test_the_bound(tiles, groups, one, last, launches, device, monkeypatch):
    # A tile is 16 values: two samples of 8 positions, or 4 rows of 4 channels.
    monkeypatch.setattr(geometry, "SIZES", geometry.Sizes(tile=16, lanes=4))
    samples, positions = (groups * tiles, 4) if last else (2 * groups * tiles, 8)
    layer = batchnorm.BatchNorm2d(4, activation="silu", **({"extent": Ghost(samples // 2)} if groups == 2 else {}))
    x = torch.randn(samples, 4, positions, 1)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    step(layer.to(device), x, device)
    forward, backward = ONE if one else THREE
    assert launches == [*forward, *backward]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    "case", ["plain", "mask", "groups", "paused", "untracked", "stored", "not finite", "one value"]
)
def test_the_same_bits_as_three_launches(case, last, launches, device, monkeypatch):
    from batchnorm.kernels.triton import whole

    monkeypatch.setattr(geometry, "SIZES", geometry.Sizes(lanes=4))  # two blocks of channels
    options = {"extent": Ghost(2)} if case == "groups" else {"method": "renorm"}
    policy = Policy(too_few="population")
    layer = batchnorm.BatchNorm2d(6, activation="silu", policy=policy, **options).to(device)
    if case == "untracked":
        layer = batchnorm.BatchNorm2d(6, activation="silu", track_running_stats=False).to(device)
    x, given = torch.randn(6, 6, 3, 2) + 3, {}
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    if case == "not finite":
        x[3, 5, 1, 1] = torch.inf
    if case in ("mask", "paused", "one value"):
        given["mask"] = torch.arange(36, device=device).reshape(6, 3, 2) < (20 if case == "mask" else 1)
    layer.paused = case == "paused"
    layer.train(case != "stored")
    twin = copy.deepcopy(layer)
    ours = [step(layer, x, device, **given) for _ in range(2)][1]
    assert set(launches) == {"forward_kernel", "backward_kernel"}
    launches.clear()
    monkeypatch.setattr(whole, "cut", lambda *told: geometry.cut(*told)._replace(alone=False))
    theirs = [step(twin, x, device, **given) for _ in range(2)][1]
    assert not {"forward_kernel", "backward_kernel"} & set(launches)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.nan_to_num(7.0, 8.0, 9.0), other.nan_to_num(7.0, 8.0, 9.0))
    if case not in ("untracked", "paused", "stored"):
        counts = [int(layer.num_batches_tracked), int(layer.num_batches_skipped)]
        assert counts == [int(twin.num_batches_tracked), int(twin.num_batches_skipped)]
        assert counts == {"not finite": [0, 2], "one value": [0, 0]}.get(case, [2, 0])


def test_the_count_of_programs_is_the_layers_own_and_ends_at_0(device):
    from batchnorm.layers.device import _ARRIVED

    layers = [batchnorm.BatchNorm1d(c, method="renorm", activation="relu").to(device) for c in (3, 9)]
    for layer in layers:
        for _ in range(2):
            step(layer, torch.randn(4, layer.num_features), device)
    one, other = (_ARRIVED[layer] for layer in layers)
    assert [int(count) for count in (*one.values(), *other.values())] == [0, 0]
    assert one is not other
    kept = len(_ARRIVED)
    del layer, layers
    assert len(_ARRIVED) == kept - 2
