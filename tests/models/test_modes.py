import copy
import pickle

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.models import is_frozen

DATA = torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(0)) + 2


def network(layer=nn.BatchNorm2d):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), layer(4), nn.ReLU(), nn.Conv2d(4, 2, 3), layer(2))


def statistics(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


BOTH = pytest.mark.parametrize("layer", [nn.BatchNorm2d, batchnorm.BatchNorm2d], ids=["stock", "ours"])


@BOTH
def test_frozen_survives_train_copy_and_pickle_and_uses_stored_statistics(layer):
    model = network(layer)
    model(DATA)
    expected = model.eval()(DATA)
    batchnorm.freeze(model)
    for candidate in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = statistics(candidate)
        assert torch.equal(candidate.train()(DATA), expected)
        assert same(statistics(candidate), before)
        assert candidate[1].training
    batchnorm.unfreeze(model)
    before = statistics(model)
    model(DATA)
    assert not same(statistics(model), before)


@BOTH
def test_requires_grad_false_alone_does_not_freeze(layer):
    model = network(layer)
    for module in model:
        module.requires_grad_(False)
    before = statistics(model)
    model(DATA)
    assert not same(statistics(model), before)


@BOTH
def test_affine_is_frozen_only_when_asked(layer):
    model = batchnorm.freeze(network(layer))
    assert model[1].weight.requires_grad
    batchnorm.freeze(model, affine=True)
    assert not model[1].weight.requires_grad
    assert not model[1].bias.requires_grad
    batchnorm.unfreeze(model, affine=True)
    assert model[1].weight.requires_grad


@pytest.mark.slow
@BOTH
def test_compiled_model_follows_freeze_unfreeze_and_pause(layer):
    model = network(layer)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(DATA)
    batchnorm.freeze(model)
    compiled(DATA)
    assert int(model[1].num_batches_tracked) == 1
    batchnorm.unfreeze(model)
    with batchnorm.pause(model):
        compiled(DATA)
    assert int(model[1].num_batches_tracked) == 1
    compiled(DATA)
    assert int(model[1].num_batches_tracked) == 2


@BOTH
def test_frozen_model_exports(layer):
    model = batchnorm.freeze(network(layer)).train()
    program = torch.export.export(model, (DATA,))
    assert torch.allclose(program.module()(DATA), model(DATA), atol=1e-6)


@BOTH
def test_pause_normalises_with_the_batch_and_moves_nothing(layer):
    model = network(layer)
    expected = copy.deepcopy(model)(DATA)
    before = statistics(model)
    with batchnorm.pause(model):
        assert torch.equal(model(DATA), expected)
        with batchnorm.pause(model):
            model(DATA)
        model(DATA)
    assert same(statistics(model), before)
    with pytest.raises(KeyError), batchnorm.pause(model):
        raise KeyError
    model(DATA)
    assert int(model[1].num_batches_tracked) == 1


def test_pauses_that_overlap_without_nesting_restore_the_flag():
    model = network()
    first, second = batchnorm.pause(model), batchnorm.pause(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    model(DATA)
    assert int(model[1].num_batches_tracked) == 0
    second.__exit__(None, None, None)
    assert model[1].track_running_stats
    model(DATA)
    assert int(model[1].num_batches_tracked) == 1


def test_a_paused_layer_keeps_its_coupling():
    model = batchnorm.convert(network(), "population")
    model(DATA)
    expected = copy.deepcopy(model)(DATA)
    before = statistics(model)
    with batchnorm.pause(model):
        assert torch.equal(model(DATA), expected)
    assert same(statistics(model), before)
    assert not torch.allclose(expected, batchnorm.to_stock(model)(DATA), atol=0.1)


@BOTH
def test_an_error_inside_a_frozen_forward_keeps_the_training_flag(layer):
    model = batchnorm.freeze(network(layer)).train()
    with pytest.raises(ValueError, match="4D"):
        model[1](torch.randn(3, 4))
    assert model[1].training
    assert is_frozen(model[1])


@pytest.mark.parametrize(
    "verb", [batchnorm.freeze, batchnorm.unfreeze, lambda model: batchnorm.pause(model).__enter__(), batchnorm.convert]
)
def test_a_model_without_batch_norm_is_refused_in_the_same_words(verb):
    with pytest.raises(batchnorm.BatchNormError, match="model must contain a batch norm layer; Linear has none"):
        verb(nn.Linear(2, 2))
