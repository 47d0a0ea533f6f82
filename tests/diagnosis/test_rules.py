"""Every rule fires on the failure it is for, and stays silent on the same model in order."""

import copy
import json
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import batchnorm
from batchnorm.diagnosis.findings import apply_rules
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.model.layer import stored
from batchnorm.diagnosis.rules import MODEL as MODEL_RULES
from tests.sampling import slow_but

DATA = torch.randn(256, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 + 1
LOADER = DATA.split(64)


class Net(nn.Module):
    def __init__(self, layer=nn.BatchNorm2d, checkpointed=False):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn = nn.Conv2d(3, 4, 3), layer(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3), layer(4)
        self.checkpointed = checkpointed

    def forward(self, x):
        x = self.conv(x)
        x = checkpoint(self.bn, x, use_reentrant=False) if self.checkpointed else self.bn(x)
        return self.bn2(self.conv2(x.relu()))


def healthy(**options):
    model = Net(**options)
    batchnorm.recalibrate(model, LOADER)
    for layer in (model.bn, model.bn2):
        layer.num_batches_tracked.fill_(1000)
    return model


def codes(model, loader=LOADER):
    return {finding.code for finding in batchnorm.diagnose(model, loader).findings}


def initial(model):
    model.bn.reset_running_stats()


def poisoned(model):
    model.bn2.running_mean[1] = torch.nan


def negative(model):
    model.bn.running_var[0] = -0.1


def lagging(model):
    model.bn.running_mean += 3 * model.bn.running_var.sqrt()


def half(model):
    model.bn.running_var = model.bn.running_var.half()
    model.bn.running_mean = model.bn.running_mean.half()


def constant(model):
    with torch.no_grad():
        model.conv.weight[2].zero_()
    batchnorm.recalibrate(model, LOADER)


def momentum_zero(model):
    model.bn.momentum = 0.0


def few_steps(model):
    model.bn.reset_running_stats()
    model.bn.momentum = 0.01
    with torch.no_grad():
        for batch in LOADER:
            model.train()(batch)


def frozen_but_moving(model):
    model.bn.requires_grad_(False)


def uneven(model):
    model.bn.num_batches_tracked.fill_(3)
    model.bn.momentum = None


def keras(model):
    model.bn2.momentum = 0.9


def outside(model):
    model.bn.momentum = 2.0


def untracked(model):
    model.bn.track_running_stats = False


BREAK = {
    "BN101": initial,
    "BN102": poisoned,
    "BN103": negative,
    "BN104": lagging,
    "BN105": half,
    "BN106": constant,
    "BN107": momentum_zero,
    "BN108": few_steps,
    "BN109": frozen_but_moving,
    "BN110": uneven,
    "BN112": keras,
    "BN113": untracked,
    "BN129": outside,
}


@pytest.mark.parametrize("layer", [nn.BatchNorm2d, batchnorm.BatchNorm2d], ids=["stock", "ours"])
def test_a_healthy_model_is_fine(layer):
    report = batchnorm.diagnose(healthy(layer=layer), LOADER)
    assert report.findings == []
    assert report.ok
    assert report.verdict == "your statistics are fine"
    assert report.layers["bn"].drift < 1e-4


@pytest.mark.parametrize("code", BREAK)
def test_fires_on_its_failure_and_names_the_layer(code):
    model = healthy()
    assert code not in codes(model)
    BREAK[code](model)
    if code == "BN105":
        # stock layers cannot run this mixture on a CPU: the evidence is enough
        layers = {name: stored(name, m) for name, m in (("bn", model.bn), ("bn2", model.bn2))}
        findings = apply_rules(MODEL_RULES, Evidence(layers))
    else:
        findings = batchnorm.diagnose(model, LOADER).findings
    found = [f for f in findings if f.code == code]
    assert [f.layer for f in found] == ["bn2" if code in ("BN102", "BN112") else "bn"]
    assert found[0].fix
    assert found[0].page.endswith(code.lower())


def test_double_counting_fires_on_stock_and_not_on_ours():
    assert "BN111" in codes(healthy(checkpointed=True))
    assert "BN111" not in codes(healthy(layer=batchnorm.BatchNorm2d, checkpointed=True))


def test_too_few_values():
    model = Net()
    small = [batch[:2, :, :5, :5] for batch in LOADER]
    batchnorm.recalibrate(model, small)
    found = batchnorm.diagnose(model, small).findings
    assert [(f.code, f.layer) for f in found if f.code == "BN114"] == [("BN114", "bn2")]
    assert "2 values per channel" in next(f.message for f in found if f.code == "BN114")


def test_padding():
    layer = nn.BatchNorm1d(4)
    x = torch.randn(64, 4, 50, generator=torch.Generator().manual_seed(0))
    batchnorm.recalibrate(layer, [x])
    assert "BN115" not in codes(layer, [x])
    lengths = torch.arange(64) % 25 + 25
    padded = torch.where(torch.arange(50) < lengths[:, None, None], x, 0.0)
    assert "BN115" in codes(layer, [padded])


@contextmanager
def process_group(wanted):
    if not wanted:
        yield
        return
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


# Those whose examples train for long.
LONG = {"BN132", "BN133"}


@pytest.mark.parametrize("rule", slow_but(MODEL_RULES, lambda rule: rule.code not in LONG), ids=lambda rule: rule.code)
def test_a_rule_fires_on_its_own_example_and_not_on_the_healthy_one(rule):
    for build, expected in ((rule.broken, True), (rule.healthy, False)):
        model, loader, options = build()
        with process_group(rule.code == "BN124"):
            report = batchnorm.diagnose(model, loader, progress=False, **options)
        found = [f for f in report.findings if f.code == rule.code]
        assert bool(found) is expected, [(f.code, f.message) for f in report.findings]
        assert all(f.fix and f.message for f in found)
        assert report.evidence.passes <= 8.0


def test_recalibration_repairs_what_diagnosis_found():
    model = healthy()
    poisoned(model)
    lagging(model)
    assert not batchnorm.diagnose(model, LOADER).ok
    batchnorm.recalibrate(model, LOADER)
    assert batchnorm.diagnose(model, LOADER).ok


def test_frozen_layers_are_not_said_to_lag_behind_batches_they_ignore():
    model = batchnorm.freeze(healthy())
    lagging(model)
    assert "BN104" not in codes(model)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d, batchnorm.BatchNorm2d], ids=["stock", "ours"])
def test_diagnosis_leaves_the_model_as_it_was(layer):
    model = healthy(layer=layer, checkpointed=True).eval()
    model.bn.train()
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    before, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    batchnorm.diagnose(model, LOADER)
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert torch.equal(rng, torch.get_rng_state())
    assert (model.training, model.bn.training, model.bn2.training) == (False, True, False)
    assert torch.equal(model.conv.weight.grad, torch.ones_like(model.conv.weight))
    assert model.bn.weight.grad is None
    assert not model.bn._forward_hooks
    assert not model.bn._forward_pre_hooks


@pytest.mark.parametrize(
    ("model", "loader", "sentence"),
    [
        (nn.BatchNorm2d(3), [], "at least one batch"),
        (nn.Linear(2, 2), [DATA], "Linear has none"),
        (nn.BatchNorm2d(3), [DATA * torch.nan], "NaN or infinity"),
        ("model", [DATA], "must be a torch.nn.Module"),
    ],
)
def test_bad_input(model, loader, sentence):
    with pytest.raises(batchnorm.BatchNormError, match=sentence):
        batchnorm.diagnose(model, loader)


def test_report_prints_and_writes(tmp_path):
    model = healthy()
    lagging(model)
    report = batchnorm.diagnose(model, LOADER)
    assert "BN104" in str(report)
    report.to_json(tmp_path / "report.json")
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["ok"] is False
    assert data["layers"]["bn"]["drift"] == pytest.approx(3.0, rel=0.01)
    report.to_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "BN104" in page
    assert "<svg" in page
    assert "src=" not in page
    assert 'href="http' not in page.replace("http://www.w3.org", "")
    with pytest.raises(batchnorm.BatchNormError, match="existing folder"):
        report.to_html(tmp_path / "absent" / "report.html")
