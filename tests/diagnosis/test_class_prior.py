"""Classes with other shares, symmetries that only the metric shows, and which of two repairs is printed."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.diagnosis.experiments.changes import Change
from batchnorm.diagnosis.experiments.class_shares import CLASSES, other_shares
from batchnorm.diagnosis.experiments.effect import Effect
from batchnorm.diagnosis.experiments.sample import Sample
from batchnorm.diagnosis.model.evaluation import RETURNS, _returns
from batchnorm.diagnosis.rules import bn121_evaluation_data, bn131_class_prior
from batchnorm.diagnosis.rules.bn131_class_prior import EXPLAINED
from batchnorm.diagnosis.rules.examples import accuracy
from batchnorm.models import batch_norm_layers


def drawn(shares, count, seed):
    """Three classes that overlap, in these shares."""
    g = torch.Generator().manual_seed(seed)
    y = torch.multinomial(torch.tensor(shares), count, replacement=True, generator=g)
    return torch.randn(count, 6, generator=g) + 1.2 * nn.functional.one_hot(y, 6).float(), y


def in_batches(x, y, size=50):
    return list(zip(x.split(size), y.split(size), strict=True))


def fit(model, x, y, rate, steps, size):
    """Train on batches that are drawn at random."""
    optimizer = torch.optim.Adam(model.train().parameters(), rate)
    for _ in range(steps):
        pick = torch.randint(len(x), (size,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[pick]), y[pick]).backward()
        optimizer.step()


def trained(x, y, steps=400):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)).train()
    fit(model, x, y, rate=0.01, steps=steps, size=100)
    batchnorm.recalibrate(model.eval(), x.split(100), progress=False)
    return model


def test_shares_of_the_labels_are_undone_on_the_output():
    x, y = drawn([0.9, 0.08, 0.02], 4000, 0)
    model, other = trained(x, y), drawn([0.2, 0.3, 0.5], 1000, 1)
    evaluation, held_out = in_batches(*other), drawn([0.2, 0.3, 0.5], 2000, 2)
    report = batchnorm.diagnose(model, in_batches(x, y), accuracy, eval_loader=evaluation)
    first = report.findings[0]
    assert (first.code, first.severity) == ("BN131", "warning")
    assert "times those of the training labels" in first.message
    offsets = report.evidence.prior_offsets
    shares = torch.bincount(other[1]).double() / 1000 / (torch.bincount(y).double() / 4000)
    # Of the loader's samples every second one is kept.
    torch.testing.assert_close(offsets, shares.log(), atol=0.15, rtol=0)
    before = accuracy(model(held_out[0]), held_out)
    fixed = copy.deepcopy(model)
    exec(first.fix, {"model": fixed, "torch": torch})
    assert accuracy(fixed(held_out[0]), held_out) > before + 0.1
    assert report.evidence.prior.after == pytest.approx(accuracy(fixed(other[0]), other), abs=0.01)
    assert report.to_dict()["metric"]["eval_prior"] == report.evidence.prior.after
    assert not model._forward_hooks


@pytest.mark.parametrize("seed", range(10))
def test_a_natural_split_has_the_same_shares(seed):
    x, y = drawn([0.5, 0.3, 0.2], 1400, seed)
    samples = [Sample(), Sample()]
    for sample, part in zip(samples, (slice(1000), slice(1000, None)), strict=True):
        for batch in in_batches(x[part], y[part]):
            sample.add(batch, nn.functional.one_hot(batch[1], 3).float())
    assert other_shares(*samples) is None


@pytest.mark.parametrize(("moved", "found"), [(CLASSES - 0.02, False), (CLASSES + 0.02, True)])
def test_shares_differ_by_more_than(moved, found):
    samples = []
    for share in (0.5, 0.5 + moved):
        y = (torch.arange(2000) >= round(share * 2000)).long()
        sample = Sample()
        for batch in in_batches(torch.randn(2000, 4), y):
            sample.add(batch, nn.functional.one_hot(batch[1], 2).float())
        samples.append(sample)
    assert (other_shares(*samples) is not None) == found


def test_what_weighing_the_samples_takes_back_is_explained_by_the_shares():
    """Class 0 is always right and class 1 never, in training and in evaluation: the shares explain all."""
    samples = []
    for share in (0.8, 0.3):
        y = (torch.arange(1000) >= round(share * 1000)).long()
        sample = Sample()
        for batch in in_batches(torch.randn(1000, 4), y):
            sample.add(batch, torch.tensor([1.0, 0.0]).expand(len(batch[1]), 2))
        samples.append(sample)
    _, explained = other_shares(*samples)
    assert explained == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(("explains", "harm"), [(EXPLAINED - 0.01, False), (EXPLAINED, True)])
def test_shares_that_explain_less_are_a_note(explains, harm):
    gap = Effect("evaluation data", 100, 0.9, 0.5, 0.4, 0.01, 100, 0.9)
    helps = Effect("other shares", 100, 0.5, 0.5, 0.0, 0.01, 100, 0.9)
    found = bn131_class_prior.predicts(SimpleNamespace(prior=helps, prior_explains=explains, eval_gap=gap))
    assert found.helps == harm


def hued(count, seed):
    """Images of four hues: exchanging the first and third channel makes of each class another."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 4
    angle = 6.283 * (y + 0.5) / 4
    hue = torch.stack([angle.cos(), torch.zeros(count), angle.sin()], 1)
    return 0.5 * hue[:, :, None, None] + 0.4 * torch.randn(count, 3, 8, 8, generator=g), y


def colour_network():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    torch.manual_seed(0)
    x, y = hued(800, 0)
    fit(model, x, y, rate=0.02, steps=150, size=64)
    batchnorm.recalibrate(model.eval(), x.split(100), progress=False)
    return model, in_batches(x, y)


def test_channels_whose_values_are_alike_are_put_in_order_by_trying():
    model, loader = colour_network()
    x, y = hued(400, 1)
    swapped = in_batches(x.flip(1), y)
    report = batchnorm.diagnose(model, loader, accuracy, eval_loader=swapped)
    assert "channels of evaluation inputs are in another order: training's 2, 1, 0" in report.findings[0].message
    assert report.evidence.eval_undone.after > 0.9 > 0.6 > report.evidence.eval_undone.before
    assert report.to_dict()["metric"]["eval_undone"] == report.evidence.eval_undone.after
    exec(report.findings[0].fix, {"model": model, "torch": torch})
    assert accuracy(model(x.flip(1)), (x, y)) > 0.9


def test_no_symmetry_is_said_where_none_brings_the_metric_back():
    """The labels of half of the evaluation samples are wrong."""
    model, loader = colour_network()
    x, y = hued(400, 1)
    wrong = torch.where(torch.arange(400) % 8 < 4, (y + 1 + torch.arange(400) // 8 % 3) % 4, y)
    report = batchnorm.diagnose(model, loader, accuracy, eval_loader=in_batches(x, wrong))
    assert report.evidence.eval_gap.helps
    assert report.evidence.difference.words == ""
    assert report.ok


def cornered(count, seed):
    """Images with a spot in one of four corners: a quarter turn makes of each class another."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 4
    x = 0.3 * torch.randn(count, 3, 8, 8, generator=g)
    for i, label in enumerate(y.tolist()):
        row, column = 5 * (label // 2), 5 * (label % 2)
        x[i, :, row : row + 3, column : column + 3] += 1.0
    return x, y


def test_a_quarter_turn_is_tried_after_the_orders_of_channels():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4))
    torch.manual_seed(0)
    x, y = cornered(800, 0)
    fit(model, x, y, rate=0.01, steps=60, size=64)
    batchnorm.recalibrate(model.eval(), x.split(100), progress=False)
    z, y = cornered(500, 1)
    lying = z.rot90(1, (2, 3))
    report = batchnorm.diagnose(model, in_batches(*cornered(800, 0)), accuracy, eval_loader=in_batches(lying, y))
    assert "turned by 90 degrees" in report.findings[0].message
    exec(report.findings[0].fix, {"model": model, "torch": torch})
    assert accuracy(model(lying), (z, y)) > 0.9


@pytest.mark.parametrize(("gain", "cause"), [(RETURNS * 0.4 - 0.01, False), (RETURNS * 0.4, True)])
def test_a_symmetry_must_bring_back_half_of_the_metric(gain, cause):
    gap = Effect("evaluation data", 400, 0.9, 0.5, 0.4, 0.02, 400, 0.8)
    assert _returns(Effect("undone", 400, 0.5, 0.5 + gain, gain, 0.02, 400, 0.8), gap) == cause
    assert not _returns(Effect("undone", 20, 0.5, 0.5 + gain, gain, 0.2, 20, 0.8), gap)


def test_of_two_repairs_the_one_after_which_the_metric_is_better():
    low = Effect("a", 100, 0.3, 0.8, 0.5, 0.01, 100, 0.8)
    high = Effect("b", 100, 0.1, 0.7, 0.6, 0.01, 100, 0.8)
    assert (low.better_than(high), high.better_than(low)) == (True, False)
    loss = Effect("c", 100, 3.0, 1.0, 2.0, 0.01, 100, 3.0)
    assert (loss.better_than(Effect("d", 100, 4.0, 1.5, 2.5, 0.01, 100, 3.0)), loss.better_than(Effect("e", 100))) == (
        True,
        True,
    )
    assert not Effect("e", 100).better_than(low)


def test_calls_of_one_layer_are_separated_as_it_is_printed():
    class Siamese(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(12, 3)

        def forward(self, x):
            return self.head(torch.cat([self.norm(x).relu(), self.norm(4 * x + 9).relu()], 1))

    torch.manual_seed(0)
    model, (x, y) = Siamese(), drawn([1.0, 1.0, 1.0], 1200, 0)
    fit(model, x, y, rate=0.02, steps=200, size=60)
    loader = in_batches(x, y, 60)
    batchnorm.recalibrate(model.eval(), loader, progress=False)
    report = batchnorm.diagnose(model, loader, accuracy)
    assert report.findings[0].code == "BN116"
    exec(report.findings[0].fix, {"model": model, "batchnorm": batchnorm, "loader": loader})
    assert len(batch_norm_layers(model)) == 2
    after = sum(accuracy(model.eval()(a), (a, b)) for a, b in loader) / len(loader)
    assert after == pytest.approx(report.evidence.by_call.after, abs=0.01)
    assert batchnorm.diagnose(model, loader, accuracy).ok


@pytest.mark.parametrize(("after", "printed"), [(0.2, False), (0.5, False), (0.7, True)])
def test_what_undoes_a_difference_is_printed_unless_it_was_tried_and_did_not_help(after, printed):
    nothing = Effect("recalibrate", 500)
    undone = Effect("undone", 500, 0.5, after, after - 0.5, 0.02, 500, 0.8)
    gap = Effect("evaluation data", 500, 0.9, 0.5, 0.4, 0.02, 500, 0.8)
    said = SimpleNamespace(
        evaluation=nothing, eval_undone=undone, eval_gap=gap, eval_shift={}, feeds_tensors=False,
        difference=Change("evaluation inputs are 2 x", code="args[0] / 2"),
    )  # fmt: skip
    [(_, words, fix)] = bn121_evaluation_data.look(said)
    assert ("args[0] / 2" in fix["undo"]) == printed
    assert ("not that alone" in words) == (not printed)
    said.eval_undone = None
    [(_, words, fix)] = bn121_evaluation_data.look(said)
    assert "args[0] / 2" in fix["undo"]
    assert "not that alone" not in words
