"""Schedule-free optimizers."""

import pytest
import torch
from torch import nn

from batchnorm import BatchNormError
from batchnorm.interop.trainers.schedule_free import evaluating, recalibrate
from tests.trainers.networks import DATA, LABELS, exact, network, statistics

schedulefree = pytest.importorskip("schedulefree")


def optimizers(model):
    parameters = list(model.parameters())
    yield schedulefree.AdamWScheduleFree(parameters, lr=0.02)
    yield schedulefree.SGDScheduleFree(parameters, lr=0.5)
    yield schedulefree.RAdamScheduleFree(parameters, lr=0.05)
    yield schedulefree.ScheduleFreeWrapper(torch.optim.SGD(parameters, lr=0.5), momentum=0.9)


@pytest.fixture(params=range(4), ids=["adamw", "sgd", "radam", "wrapper"])
def trained(request):
    model = network()
    optimizer = list(optimizers(model))[request.param]
    optimizer.train()
    for _ in range(8):
        nn.functional.cross_entropy(model(DATA), LABELS).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_between_steps(trained):
    model, optimizer = trained
    in_training, before = weights(model), statistics(model)
    optimizer.eval()
    averaged = weights(model)
    assert not torch.allclose(averaged[0], in_training[0], atol=1e-4)
    assert not exact(model)
    optimizer.train()
    with evaluating(model, optimizer, DATA.split(32)) as result:
        assert result.samples == len(DATA)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(weights(model), averaged, strict=True))
        assert exact(model)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(weights(model), in_training, strict=True))
    assert equal(statistics(model), before)
    nn.functional.cross_entropy(model(DATA), LABELS).backward()
    optimizer.step()  # refused in eval mode


def test_at_the_end(trained):
    model, optimizer = trained
    recalibrate(model, optimizer, DATA.split(32))
    assert exact(model)
    with evaluating(model, optimizer, DATA.split(32)):
        pass
    with pytest.raises(Exception, match="train mode"):
        optimizer.step()


def test_an_error_leaves_everything_as_it_was(trained):
    model, optimizer = trained
    in_training, before = weights(model), statistics(model)
    with pytest.raises(BatchNormError, match="loader must"):
        recalibrate(model, optimizer, [])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(weights(model), in_training, strict=True))
    assert equal(statistics(model), before)
    optimizer.step()


def test_another_optimizer():
    model = network()
    with pytest.raises(BatchNormError, match=r"schedule-free, with train\(\) and eval\(\); it was a SGD"):
        recalibrate(model, torch.optim.SGD(model.parameters(), 0.1), DATA.split(32))
