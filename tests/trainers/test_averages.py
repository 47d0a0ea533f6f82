"""Averaged copies of a model."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from batchnorm import BatchNormError
from batchnorm.interop.trainers.averages import averaged_model, recalibrate
from tests.trainers.networks import DATA, LABELS, exact, network, statistics


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.8)], ids=["swa", "ema"])
def test_in_the_middle_of_training(average, use_buffers):
    model = network()
    averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=use_buffers)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    loader = DataLoader(TensorDataset(DATA, LABELS), batch_size=20, shuffle=True)
    seen = 0
    for x, y in loader:
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        averaged.update_parameters(model)
        assert not exact(averaged)
        before = statistics(model)
        result = recalibrate(averaged, loader)
        assert result.samples == len(DATA)
        assert exact(averaged)
        assert all(torch.equal(a, b) for a, b in zip(statistics(model), before, strict=True))
        seen += len(x)
    assert seen == len(DATA)


def test_holders():
    class Holder:
        def __init__(self, **held):
            self.__dict__.update(held)

    model = network()
    averaged = AveragedModel(model)
    assert averaged_model(averaged) is averaged.module
    assert averaged_model(Holder(_average_model=averaged)) is averaged.module
    assert averaged_model(Holder(ema=model)) is model
    with pytest.raises(BatchNormError, match="Holder has none as module, ema"):
        averaged_model(Holder(shadow=[1]))
