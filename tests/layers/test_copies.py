"""A copy made inside a context starts outside it, and the original is as it would have been."""

import contextlib
import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import batchnorm

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) * 2 + 1
CONTEXTS = {
    "pause": batchnorm.pause,
    "bank": lambda model: batchnorm.bank(model, "a"),
    "bank with affine": lambda model: batchnorm.bank(model, "a", own_affine=True),
    "masked": lambda model: batchnorm.masked(model, mask=torch.arange(8) < 5),
    "accumulate": batchnorm.accumulate,
    "accumulate, renorm": lambda model: batchnorm.accumulate(model, renorm=True),
    "mode": lambda model: batchnorm.models.mode(model, train=False),
}
STOCK = {"pause": CONTEXTS["pause"], "mode": CONTEXTS["mode"]}


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
    "AveragedModel": lambda model: AveragedModel(model).module,
    "copy of the layer": lambda model: nn.Sequential(copy.copy(model[0])),
}


def plain_step(model):
    """What one forward in train mode makes of a new layer's statistics."""
    model(X)
    layer = model[0]
    return torch.equal(layer.running_mean, torch.tensor(0.1) * X.mean(0)) or torch.allclose(
        layer.running_mean, 0.1 * X.mean(0), rtol=1e-6
    )


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", ["ours", "stock"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_a_copy_starts_outside(context, kind, how):
    if kind == "stock" and context not in STOCK:
        pytest.skip("this context takes the package's layers alone")
    if kind == "stock" and how == "copy of the layer":
        pytest.skip("a shallow copy of a torch layer shares its hooks, and leaves a context with it")
    model = nn.Sequential((batchnorm if kind == "ours" else nn).BatchNorm1d(3))
    shares = how == "copy of the layer"
    with CONTEXTS[context](model):
        made = COPIES[how](model)
        if not shares:
            assert plain_step(made)
            assert int(made[0].num_batches_tracked) == 1
    if not shares:
        # The original knows nothing of it, and goes on as an ordinary layer.
        assert torch.equal(model[0].running_mean, torch.zeros(3))
    after = made if shares else copy.deepcopy(made)
    before = after[0].running_mean.clone()
    after(X)
    assert not torch.equal(after[0].running_mean, before)
    model(X)
    assert int(model[0].num_batches_tracked) >= 1


def test_what_was_accumulated_stays_with_the_original():
    model = nn.Sequential(batchnorm.BatchNorm1d(3))
    with batchnorm.accumulate(model):
        model(X[:4])
        made = copy.deepcopy(model)
        model(X[4:])
    assert torch.allclose(model[0].running_mean, 0.1 * X.mean(0))
    assert int(made[0].num_batches_tracked) == 0
    assert not [name for name, _ in made.named_buffers() if "pending" in name]


def test_a_frozen_copy_is_frozen_and_a_paused_one_is_not():
    model = batchnorm.freeze(nn.Sequential(batchnorm.BatchNorm1d(3)))
    with batchnorm.pause(model):
        made = copy.deepcopy(model).train()
    made(X)
    assert int(made[0].num_batches_tracked) == 0
    batchnorm.unfreeze(made)
    made(X)
    assert int(made[0].num_batches_tracked) == 1


@pytest.mark.parametrize("kind", ["ours", "stock"])
def test_contexts_overlap_and_end_in_any_order(kind):
    model = nn.Sequential((batchnorm if kind == "ours" else nn).BatchNorm1d(3))
    first, second = contextlib.ExitStack(), contextlib.ExitStack()
    first.enter_context(batchnorm.pause(model))
    second.enter_context(batchnorm.pause(model))
    first.close()
    model(X)
    assert int(model[0].num_batches_tracked) == 0
    second.close()
    model(X)
    assert int(model[0].num_batches_tracked) == 1
    assert not model[0]._forward_pre_hooks


def test_a_context_that_fails_half_way_leaves_nothing():
    model = nn.Sequential(batchnorm.BatchNorm1d(3), batchnorm.BatchNorm1d(3, method="cbn"))
    with pytest.raises(batchnorm.BatchNormError), batchnorm.accumulate(model):
        pass
    model[0](X)
    assert int(model[0].num_batches_tracked) == 1


def test_a_copy_of_a_copy_and_a_generator_left_open():
    model = nn.Sequential(nn.BatchNorm1d(3))

    def forwards():
        with batchnorm.pause(model):
            yield copy.deepcopy(copy.deepcopy(model))

    generator = forwards()
    made = next(generator)
    assert plain_step(made)
    generator.close()
    model(X)
    assert int(model[0].num_batches_tracked) == 1
