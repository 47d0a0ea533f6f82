"""What a layer holds beside torch's buffers: where it is, what loads it, and what it is not."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import batchnorm

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
