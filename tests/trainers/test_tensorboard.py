"""watch writes event files."""

import pytest
import torch

import batchnorm
from tests.trainers.networks import DATA, network


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::batchnorm.diagnosis.BatchNormWarning")
def test_event_files_hold_what_the_report_holds(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with SummaryWriter(str(tmp_path)) as writer, batchnorm.watch(model, optimizer, to=writer, every=2) as report:
        for _ in range(8):
            model(DATA).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert "batchnorm/1/drift" in events.Tags()["scalars"]
    drift = events.Scalars("batchnorm/4/drift")
    assert [event.step for event in drift] == [1, 2, 3, 4, 5, 6, 8]
    timeline = report.layers["4"].timeline
    assert [event.value for event in drift] == pytest.approx([point.drift for point in timeline], rel=1e-6)
    assert events.Scalars("batchnorm/1/updates")[-1].value == 8
