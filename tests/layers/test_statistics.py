"""What a layer holds beside torch's buffers: where it is, what loads it, and what it is not."""

import copy
import io
import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm import BatchNormError, kernels
from batchnorm.layers import METHODS, Coupling, Estimator, Ghost, Move, Numbers, Policy, Vectors

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
BAD = torch.where(torch.arange(24).view(8, 3) == 4, torch.nan, X)
TORCHS = ["running_mean", "running_var", "num_batches_tracked"]


def with_a_skip():
    layer = batchnorm.BatchNorm1d(3)
    layer(BAD)
    assert int(layer.num_batches_skipped) == 1
    return layer


@pytest.mark.parametrize("method", ["batchnorm", "debiased", "cumulative", "diminishing", "renorm", "population"])
def test_named_buffers_are_torchs_three(method):
    assert [name for name, _ in batchnorm.BatchNorm1d(3, method=method).named_buffers()] == TORCHS
    layer = batchnorm.BatchNorm1d(3, method=method)
    layer(X)
    with batchnorm.accumulate(layer):
        layer(X)
        assert [name for name, _ in layer.named_buffers()] == TORCHS


@pytest.mark.parametrize(
    "through",
    [
        copy.deepcopy,
        lambda layer: pickle.loads(pickle.dumps(layer)),
        lambda layer: layer.double(),
        lambda layer: layer.half(),
        lambda layer: layer.to("cpu"),
        lambda layer: layer.share_memory(),
    ],
    ids=["deepcopy", "pickle", "double", "half", "to", "share_memory"],
)
def test_the_count_of_skipped_batches_goes_along(through):
    layer = through(with_a_skip())
    assert int(layer.num_batches_skipped) == 1
    layer(BAD.to(layer.weight.dtype) if layer.weight.dtype is torch.float64 else BAD)
    assert int(layer.num_batches_skipped) == 2


@pytest.mark.parametrize("method", batchnorm.methods())
def test_a_layer_made_on_the_meta_device_is_whole_once_a_state_is_assigned(method):
    with torch.device("meta"):
        layer = batchnorm.BatchNorm1d(3, method=method)
    assert layer.num_batches_skipped.is_meta
    layer.load_state_dict(nn.BatchNorm1d(3).state_dict(), assign=True)
    layer.to("cpu")
    assert {tensor.device.type for tensor in (*layer.buffers(), *layer.parameters())} == {"cpu"}
    assert int(layer.num_batches_skipped) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("method", batchnorm.methods())
def test_a_layer_taken_off_the_meta_device_empty_is_a_fresh_one_once_reset(method, dtype):
    fresh = batchnorm.BatchNorm1d(3, method=method, dtype=dtype)
    layer = batchnorm.BatchNorm1d(3, method=method, dtype=dtype).to("meta").to_empty(device="cpu")
    assert int(layer.num_batches_skipped) == 0
    layer.reset_parameters()
    state = layer.state_dict()
    for name, value in fresh.state_dict().items():
        assert state[name].dtype == value.dtype, name
        assert torch.equal(state[name], value), name


def test_a_layer_taken_off_the_meta_device_empty_counts_what_it_skips():
    layer = batchnorm.BatchNorm1d(3, device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    layer(BAD)
    assert int(layer.num_batches_skipped) == 1


@pytest.mark.parametrize("method", batchnorm.methods())
def test_a_meta_model_is_converted(method):
    if method == "cbn":
        pytest.skip("looks for the convolution before")
    with torch.device("meta"):
        model = nn.Sequential(nn.BatchNorm1d(3))
    batchnorm.convert(model, method)
    model.load_state_dict(nn.Sequential(nn.BatchNorm1d(3)).state_dict(), assign=True)
    assert torch.equal(model[0].running_var, torch.ones(3))


def test_a_pickle_of_the_time_when_the_count_was_a_buffer_loads():
    layer = with_a_skip()
    state = layer.__getstate__()
    skipped = state.pop("_skipped")
    state["_buffers"] = {**state["_buffers"], "num_batches_skipped": skipped, "pending_mean": torch.zeros(3)}
    state["_non_persistent_buffers_set"] = {"num_batches_skipped", "pending_mean"}
    old = batchnorm.BatchNorm1d.__new__(batchnorm.BatchNorm1d)
    old.__setstate__(copy.deepcopy(state))
    assert [name for name, _ in old.named_buffers()] == TORCHS
    assert int(old.num_batches_skipped) == 1
    old(BAD)
    assert int(old.num_batches_skipped) == 2


@pytest.mark.parametrize("own_affine", [False, True])
def test_a_bank_first_used_in_inference_mode_trains_afterwards(own_affine):
    layer = batchnorm.BatchNorm1d(3)
    with torch.inference_mode(), batchnorm.bank(layer, "a", own_affine=own_affine):
        layer(X)
    with batchnorm.bank(layer, "a"):
        layer(X).square().sum().backward()
    assert not any(tensor.is_inference() for tensor in (*layer.buffers(), *layer.parameters()))


def test_conversion_accumulation_and_lazy_layers_in_inference_mode_train_afterwards():
    with torch.inference_mode():
        model = batchnorm.convert(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).requires_grad_(True), "window")
    memory = [model[1].stat(name) for name in model[1].memory_names]
    assert memory
    assert not any(tensor.is_inference() for tensor in memory)
    layer = batchnorm.BatchNorm1d(3)
    with torch.inference_mode(), batchnorm.accumulate(layer):
        layer(X)
    layer(X).sum().backward()


def test_a_state_without_a_bank_is_copied_into_it_by_an_assigning_load():
    layer = batchnorm.BatchNorm1d(3)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    with batchnorm.bank(layer, "a", own_affine=True):
        layer(X)
    layer.load_state_dict(state, assign=True)
    layer(X + 5)
    assert torch.equal(layer.bank_a_running_mean, torch.zeros(3))
    pointers = [t.data_ptr() for t in (*layer.parameters(), *layer.buffers())]
    assert len(set(pointers)) == len(pointers)


def test_a_whole_saved_layer_loads():
    file = io.BytesIO()
    torch.save(with_a_skip(), file)
    file.seek(0)
    assert int(torch.load(file, weights_only=False).num_batches_skipped) == 1


def test_a_shared_layer_shares_its_count_and_a_lazy_one_made_in_inference_mode_trains():
    layer = batchnorm.BatchNorm1d(3).share_memory()
    assert layer.num_batches_skipped.is_shared()
    lazy = batchnorm.LazyBatchNorm1d().to("cpu").float()
    with torch.inference_mode():
        lazy(X)
    lazy(X).sum().backward()
    assert lazy.weight.grad is not None


POPULATION = Policy(too_few="population")
ALL, ONE, NONE = (torch.arange(8) < count for count in (8, 1, 0))
HALF = torch.tensor([True, True, False, False] * 2)
# Choices, the mask, how many batches of X are skipped, and how many of BAD, which has a NaN in its second sample.
SKIPS = {
    "no mask": ({}, None, 0, 1),
    "a mask of ones": ({}, ALL, 0, 1),
    "no value": ({}, NONE, 0, 0),
    "no value of renorm": ({"method": "renorm"}, NONE, 0, 0),
    "one value": ({"policy": POPULATION}, ONE, 0, 0),
    "groups of one": ({"extent": Ghost(1), "policy": POPULATION}, None, 0, 0),
    "groups of one under a mask": ({"extent": Ghost(1), "policy": POPULATION}, ALL, 0, 0),
    "a stream of one": ({"extent": Ghost(1, "sequential"), "policy": POPULATION}, None, 0, 0),
    "a stream of one under a mask": ({"extent": Ghost(1, "sequential"), "policy": POPULATION}, ALL, 0, 0),
    "a stream": ({"extent": Ghost(4, "sequential")}, None, 0, 1),
    "a stream with empty groups": ({"extent": Ghost(2, "sequential")}, HALF, 0, 1),
    "online": ({"method": "online"}, ONE, 0, 0),
    "propagated": ({"policy": Policy(nonfinite="propagate")}, ALL, 0, 0),
}


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("case", SKIPS)
def test_what_is_not_finite_is_skipped_and_nothing_else(case, backend):
    choices, mask, *expected = SKIPS[case]
    kernels.use(backend)
    try:
        for x, count in zip((X, BAD), expected, strict=True):
            layer = batchnorm.BatchNorm1d(3, **choices)
            layer(x, mask=mask)
            assert int(layer.num_batches_skipped) == count
            if not layer.recipe.extent.sequential and mask is not None:
                gathered = batchnorm.BatchNorm1d(3, **choices)
                with batchnorm.accumulate(gathered):
                    gathered(x, mask=mask)
                assert int(gathered.num_batches_skipped) == count
    finally:
        kernels.use()


@dataclass(frozen=True)
class Remembers(Coupling):
    """A coupling with a memory of this name."""

    name: str = "held"

    def memory(self, state, trained):
        return {self.name: torch.zeros_like(state.var)[None]}

    def plan(self, state, now):
        return Numbers(), Vectors()


@dataclass(frozen=True)
class Remembered(Estimator):
    """An estimator with a memory of this name."""

    name: str = "kept"

    def memory(self, state, trained):
        return {self.name: torch.zeros_like(state.var)[None]}

    def move(self, state, now):
        return Move(0.1, 0.9, 0.1)


# Parameters, buffers, attributes of the object and of the class, methods, and what no buffer may be called.
TAKEN = (
    "weight", "bias", "running_var", "num_batches_tracked", "num_batches_skipped", "eps", "training", "paused",
    "recipe", "forward", "bank_a", "_ready", "a.b", "",
)  # fmt: skip


@pytest.mark.parametrize("choices", [{"coupling": Remembers}, {"estimator": Remembered}])
@pytest.mark.parametrize("make", [batchnorm.BatchNorm1d, batchnorm.LazyBatchNorm1d])
@pytest.mark.parametrize("name", TAKEN)
def test_a_memory_has_a_name_of_its_own(name, make, choices):
    given = {kind: choice(name) for kind, choice in choices.items()}
    sizes = () if make is batchnorm.LazyBatchNorm1d else (3,)
    with pytest.raises(BatchNormError, match=f"BatchNorm1d has for nothing else, .* one was {name!r}"):
        make(*sizes, **given)


def test_two_choices_do_not_share_a_memory():
    with pytest.raises(BatchNormError, match="must not both remember 'kept'"):
        batchnorm.BatchNorm1d(3, coupling=Remembers("kept"), estimator=Remembered("kept"))
    layer = batchnorm.BatchNorm1d(3, coupling=Remembers(), estimator=Remembered())
    assert sorted(layer.memory_names) == ["held", "kept"]


def test_a_memory_is_no_tensor_that_the_owner_registered():
    layer = batchnorm.BatchNorm1d(3)
    layer.register_buffer("held", torch.zeros(1))
    before = layer.recipe
    with pytest.raises(BatchNormError, match="one was 'held'"):
        batchnorm.convert(layer, coupling=Remembers())
    assert layer.recipe is before
    assert layer.held.shape == (1,)


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("method", [method for method in METHODS if method != "cbn"])
def test_a_lazy_layer_loads_the_state_of_what_it_becomes(method, assign):
    made, lazy = batchnorm.BatchNorm1d(3, method=method), batchnorm.LazyBatchNorm1d(method=method)
    mask = {"masked": {"mask": ALL}, "weighted": {"weights": ALL.float()}}.get(method, {})
    for _ in range(3):
        made(X + 1, **mask)
    lazy.load_state_dict({name: value.clone() for name, value in made.state_dict().items()}, assign=assign)
    assert torch.equal(lazy(X, **mask), made(X, **mask))
    assert type(lazy) is batchnorm.BatchNorm1d
    assert lazy.num_features == 3
    assert all(torch.equal(v, lazy.state_dict()[name]) for name, v in made.state_dict().items())


def test_a_lazy_layer_loads_banks_stock_states_and_lazy_ones():
    made = batchnorm.BatchNorm1d(3, method="window")
    with batchnorm.bank(made, "a"):
        made(X + 1)
    lazy = batchnorm.LazyBatchNorm1d(method="window")
    lazy.load_state_dict(made.state_dict())
    assert lazy.bank_names == ("a",)
    assert torch.equal(lazy.bank_a_window_mean, made.bank_a_window_mean)
    stock = nn.BatchNorm1d(3, momentum=1.0)
    stock(X)
    lazy = batchnorm.LazyBatchNorm1d(method="window")
    lazy.load_state_dict(stock.state_dict())
    assert torch.equal(lazy.window_mean, stock.running_mean.expand(10, 3))
    bare = batchnorm.LazyBatchNorm1d(track_running_stats=False)
    bare.load_state_dict(batchnorm.BatchNorm1d(3, track_running_stats=False).state_dict())
    assert bare.num_features == 3
    lazy = batchnorm.LazyBatchNorm1d(method="window")
    lazy.load_state_dict(batchnorm.LazyBatchNorm1d().state_dict())
    assert lazy(torch.randn(4, 5)).shape == (4, 5)
    assert lazy.window_mean.shape == (10, 5)
