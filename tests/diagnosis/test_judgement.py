"""Kinds that went wrong: what is said rests on harm that was measured, and a fix on having been tried."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import batchnorm
from batchnorm.demo.data import load_digits

DIGITS = load_digits()
X, Y = DIGITS.train_x.flatten(1), DIGITS.train_y
TEST = [(DIGITS.test_x.flatten(1), DIGITS.test_y)]


def accuracy(output, batch):
    return float((output.argmax(1) == batch[1]).double().mean())


def network(inputs=64, classes=10, dropout=0.0, momentum=0.1):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(inputs, 48), nn.BatchNorm1d(48, momentum=momentum), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(48, 48), nn.BatchNorm1d(48, momentum=momentum), nn.ReLU(), nn.Linear(48, classes),
    )  # fmt: skip


def train(model, steps=200, x=X, y=Y, lr=0.01, settle=60, mode=lambda m: m.train(), weights=None):
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for step in range(steps + settle):
        optimizer.param_groups[0]["lr"] = lr if step < steps else lr / 50
        mode(model)
        weights = torch.ones(len(x)) if weights is None else weights
        pick = torch.multinomial(weights, 64, replacement=True, generator=generator)
        optimizer.zero_grad()
        functional.cross_entropy(model(x[pick]), y[pick]).backward()
        optimizer.step()
    return model


def batches(x=X, y=Y, size=64):
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.fixture(scope="module")
def trained():
    return train(network())


def above(report):
    return [f.code for f in report.findings if f.severity != "note"]


def test_trained_with_the_stored_statistics_is_told_to_keep_them():
    torch.manual_seed(0)
    x = torch.randn(1024, 4)
    y = (x[:, 0] * x[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(4, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 2)).eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(20):
        for part, labels in batches(3 + 2 * x, y):
            optimizer.zero_grad()
            functional.cross_entropy(model(part), labels).backward()
            optimizer.step()
    loader = batches(3 + 2 * x, y)
    report = batchnorm.diagnose(model, loader, accuracy)
    first = report.findings[0]
    assert (first.code, first.severity) == ("BN130", "note")
    assert first.fix.startswith("batchnorm.freeze(model)")
    assert report.ok
    assert report.evidence.statistics.harms
    assert all("makes the metric worse" in f.fix for f in report.findings if f.code in ("BN101", "BN104"))
    moving = batchnorm.diagnose(copy.deepcopy(model).train(), loader, accuracy)
    assert above(moving) == ["BN130"]


def test_layers_that_train_leaves_in_eval_are_frozen():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network()

        def forward(self, x):
            return self.body(x)

        def train(self, mode=True):
            super().train(mode)
            for m in self.modules():
                if isinstance(m, nn.BatchNorm1d):
                    m.training = False
            return self

    report = batchnorm.diagnose(Detector(), batches())
    assert report.evidence.left_in_eval == {"body.1", "body.5"}
    assert not {"BN104", "BN108"} & {f.code for f in report.findings}


def test_a_fix_is_printed_with_what_it_did(trained):
    model = copy.deepcopy(trained)
    model[1].running_mean += 2 * model[1].running_var.sqrt()
    report = batchnorm.diagnose(model, batches(), accuracy)
    first = report.findings[0]
    assert (first.code, first.severity, first.layer) == ("BN104", "warning", "1")
    effect = report.evidence.statistics
    assert first.tried.startswith(f"metric {effect.before:.4g} -> {effect.after:.4g} (+- {effect.error:.2g})")
    assert first.tried in " ".join(str(report).split())
    stored = sum(accuracy(model.eval()(x), (x, y)) * len(x) for x, y in batches()) / len(X)
    batchnorm.recalibrate(model, batches())
    exact = sum(accuracy(model(x), (x, y)) * len(x) for x, y in batches()) / len(X)
    assert effect.before == pytest.approx(stored, abs=1e-6)
    assert effect.after == pytest.approx(exact, abs=1e-6)


def test_a_drift_that_harms_nothing_is_a_note(trained):
    model = copy.deepcopy(trained)
    model[1].running_mean += 0.12 * model[1].running_var.sqrt()
    report = batchnorm.diagnose(model, batches(), accuracy)
    assert "BN104" in {f.code for f in report.findings}
    assert report.ok
    assert "changes nothing beyond noise" in report.findings[0].fix


def test_causes_that_compete_are_ranked_by_what_they_explain(trained):
    model = copy.deepcopy(trained)
    model[5].running_mean += 2 * model[5].running_var.sqrt()
    model[1].momentum = 0.9
    report = batchnorm.diagnose(model, batches(), accuracy)
    shares = {f.code: f.share for f in report.findings if f.share is not None}
    assert shares["BN104"] > 0.9
    assert shares["BN112"] < 0.1
    assert above(report) == ["BN104"]
    assert report.findings[0].code == "BN104"


@pytest.mark.parametrize(
    ("change", "words"),
    [(lambda x: x * 16, "16 x"), (lambda x: x * 0.3, "0.3 x"), (lambda x: x.max() - x, "-1 x"),
     (lambda x: 3 * x - 8, "3 x - 8")],
)  # fmt: skip
def test_evaluation_data_by_scale_and_offset(trained, change, words):
    evaluation = batches(change(TEST[0][0]), TEST[0][1], 50)
    report = batchnorm.diagnose(trained, batches(), accuracy, eval_loader=evaluation)
    first = report.findings[0]
    assert (first.code, first.severity) == ("BN121", "warning")
    assert words in first.message
    assert "with that undone" in first.tried
    assert report.evidence.eval_undone.after > 0.9
    model = copy.deepcopy(trained)
    exec(first.fix, {"batchnorm": batchnorm, "model": model, "eval_loader": evaluation})
    assert accuracy(model.eval()(evaluation[0][0]), evaluation[0]) > 0.85
    own = batchnorm.diagnose(trained, batches(), accuracy, eval_loader=batches(*TEST[0], 50))
    assert own.ok
    assert "BN121" not in {f.code for f in own.findings}


def test_evaluation_data_of_other_classes_are_no_reason_to_recalibrate(trained):
    """Nearly all of one class: recalibrated on them, the classes collapse."""
    x, y = TEST[0]
    keep = (y == 3) | (torch.arange(len(y)) % 20 == 0)
    evaluation = batches(x[keep], y[keep], 32)
    report = batchnorm.diagnose(trained, batches(), accuracy, eval_loader=evaluation)
    assert report.ok
    note = next(f for f in report.findings if f.code == "BN131")
    assert note.fix.startswith("keep the stored statistics; do not recalibrate")
    assert "BN121" not in {f.code for f in report.findings}


def test_a_gap_that_is_not_in_one_layer_is_found(trained):
    """Four-bit weights."""
    model = copy.deepcopy(trained)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.Linear):
                step = m.weight.abs().amax(1, keepdim=True) / 2
                m.weight.copy_((m.weight / step).round() * step)
    report = batchnorm.diagnose(model, batches(), accuracy)
    assert report.evidence.statistics.helps
    assert report.findings[0].code in ("BN104", "BN132")
    assert not report.ok


def test_heavy_tails_with_exact_statistics_are_silent():
    torch.manual_seed(0)
    population = torch.cat([
        torch.distributions.StudentT(3.0).sample((40000, 4)),
        torch.randn(40000, 4).mul(1.2).exp(),
        (torch.rand(40000, 4) < 0.02).float(),
    ], 1)  # fmt: skip
    model = nn.Sequential(nn.BatchNorm1d(12), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    batchnorm.recalibrate(model, population.split(1000))
    for layer in (model[0], model[2]):
        layer.num_batches_tracked.fill_(1000)
    for start in (0, 2000, 4000):
        assert batchnorm.diagnose(model, population[start : start + 1000].split(50)).ok


def test_dropout_is_named_beside_a_drift():
    model = train(network(dropout=0.6))
    model[1].running_mean += 0.12 * model[1].running_var.sqrt()
    report = batchnorm.diagnose(model, batches(), accuracy)
    assert report.ok
    assert "BN118" in {f.code for f in report.findings}
    assert report.evidence.outcomes["rest"].mean < report.evidence.outcomes["stored"].mean


def test_a_momentum_schedule_leaves_what_is_read_from_the_statistics():
    model = network(momentum=0.1)
    product = 1.0
    with torch.no_grad():
        for step in range(30):
            for layer in (model[1], model[5]):
                layer.momentum = 0.1 * 0.85**step
            product *= 1 - 0.1 * 0.85**step
            model.train()(X[32 * step : 32 * step + 32])
    layers = batchnorm.diagnose(model, batches()).layers
    assert layers["1"].initial_share[0] == pytest.approx(product, abs=0.03)
    assert layers["1"].remaining > 0.9
    found = [f for f in batchnorm.diagnose(model, batches()).findings if f.code == "BN108"]
    assert "it was larger before" in found[0].message


def test_a_layer_that_does_not_read_its_mean_is_not_told_that_it_lags():
    class NoMean(nn.BatchNorm1d):
        def forward(self, x):
            return x * self.weight

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 8), NoMean(8), nn.ReLU(), nn.Linear(8, 10))
    assert batchnorm.diagnose(model, batches()).findings == []


def test_a_batch_of_two_images_has_few_values_however_many_pixels():
    torch.manual_seed(0)
    x = torch.randn(64, 1, 1, 1) + 0.1 * torch.randn(64, 1, 14, 14)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    batchnorm.recalibrate(model, x.split(2))
    found = [f for f in batchnorm.diagnose(model, x.split(2)).findings if f.code == "BN114"]
    assert "as informative as 2 independent ones" in found[0].message
    assert "BN114" not in {f.code for f in batchnorm.diagnose(model, x.split(32)).findings}


def test_lost_counters_do_not_blame_the_one_that_counts():
    model = train(network(), steps=60)
    model[1].num_batches_tracked.zero_()
    assert [f.layer for f in batchnorm.diagnose(model, batches()).findings if f.code == "BN110"] == ["1"]


def test_a_compiled_model_is_diagnosed_by_its_own_names(trained):
    report = batchnorm.diagnose(torch.compile(trained, backend="eager"), batches())
    assert list(report.layers) == ["1", "5"]


def test_one_sample_has_an_error_that_is_unknown():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    text = str(batchnorm.diagnose(model, [torch.randn(1, 1, 8, 8) + 3]))
    assert "nan" not in text
    assert "unknown" in text
