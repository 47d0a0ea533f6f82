"""What was done to evaluation inputs, and when it is an alarm."""

import copy

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.diagnosis.experiments.differing import difference
from batchnorm.diagnosis.experiments.sample import ROWS, Sample
from batchnorm.diagnosis.experiments.scores import agreement, labels
from batchnorm.diagnosis.rules.examples import accuracy, batches, labelled, network, norms


def compared(x, y):
    a, b = Sample(), Sample()
    for part in x.split(50):
        a.add(part, None)
    for part in y.split(50):
        b.add(part, None)
    return difference(a, b)


def signals(seed, rate=1.0, count=300):
    """A tone whose frequency and phase are random, in a little noise."""
    g = torch.Generator().manual_seed(seed)
    tone = 0.3 + 0.5 * torch.rand(count, 1, 1, generator=g)
    phase = 6.28 * torch.rand(count, 2, 1, generator=g)
    return (tone * rate * torch.arange(96) + phase).sin() + 0.1 * torch.randn(count, 2, 96, generator=g)


def test_another_sample_rate_is_told_from_noise():
    assert "about 2 times as fast" in compared(signals(0), signals(1, 2.0)).words
    noisy = signals(1) + torch.randn(300, 2, 96, generator=torch.Generator().manual_seed(2))
    assert "noise (standard deviation 1)" in compared(signals(0), noisy).words
    assert compared(signals(0), signals(1)).words == ""


def test_noise_in_training_is_what_augmentation_does():
    noisy = signals(0) + torch.randn(300, 2, 96, generator=torch.Generator().manual_seed(2))
    found = compared(noisy, signals(1))
    assert "training inputs have noise" in found.words
    assert found.usual


def words(seed, shift=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.multinomial(1 / torch.arange(1.0, 60.0), 300 * 20, replacement=True, generator=g).view(300, 20) + 1
    ends = torch.randint(8, 16, (300, 1), generator=g)
    return torch.where(torch.arange(20) < ends, (x + shift) % 60 + 1, 0)


def test_tokens_and_padding():
    assert compared(words(0), words(1)).words == ""
    assert "tokens occur with other frequencies" in compared(words(0), words(1, shift=7)).words
    short = torch.where(torch.arange(20) < 4, words(1), 0)
    share = (short == 0).double().mean()
    assert f"number 0 takes up {share:.0%} of evaluation inputs" in compared(words(0), short).words
    front = torch.stack([row.roll(int((row == 0).sum())) for row in words(1)])
    assert "padding takes up 42% in front and 1% behind of evaluation inputs" in compared(words(0), front).words
    short = torch.cat([signals(1)[..., :48], torch.zeros(300, 2, 48)], 2)
    assert "50% of the positions are the same in all evaluation inputs" in compared(signals(0), short).words


def test_what_was_found_is_undone_to_the_value():
    x, y = torch.randn(400, 3, 6, 6).exp(), torch.randn(400, 3, 6, 6).exp()
    torch.testing.assert_close(compared(x, y * 255).undo(y * 255), y)
    order = x * torch.tensor([1.0, 3.0, 9.0])[:, None, None]
    torch.testing.assert_close(compared(order, order.flip(1)).undo(order.flip(1)), order)


@pytest.mark.parametrize("size", [7, 300])
def test_rows_are_kept_evenly(size):
    sample, x = Sample(), torch.arange(5000.0)[:, None].expand(-1, 2)
    for part in x.split(size):
        sample.add(part, None)
    kept = sample.table[:, 0]
    assert ROWS <= len(kept) <= 2 * ROWS
    assert bool((kept.diff() == sample.stride).all())


def test_classes_of_the_loader_serve_where_no_metric_is_given():
    model = network()
    loader = labelled(model)
    assert batchnorm.diagnose(model, loader).evidence.metric("stored") == 1.0
    with torch.no_grad():
        norms(model)[1].running_mean += 3 * norms(model)[1].running_var.sqrt()
    report = batchnorm.diagnose(model, loader)
    assert report.findings[0].tried.startswith("metric ")
    assert "no metric= was given" in " ".join(str(report).split())
    other = [(x, torch.full((len(x),), 7)) for x in batches()]
    assert batchnorm.diagnose(model, other).evidence.metric("stored") is None
    assert labels(torch.zeros(4, 3), (torch.zeros(4, 8), torch.arange(4) % 3)).tolist() == [0, 1, 2, 0]
    assert agreement(torch.eye(3), (torch.zeros(3, 8), torch.tensor([0, 1, 0]))) == pytest.approx(2 / 3)


def test_classes_of_positions_and_of_outputs_that_hold_more():
    scores = torch.zeros(2, 3, 2, 2).index_fill_(1, torch.tensor([1]), 1.0)
    seen, right = torch.zeros(2, 3, 8, 8), torch.ones(2, 2, 2, dtype=torch.long)
    assert agreement({"out": scores, "aux": -scores}, (seen, right)) == 1.0
    assert agreement((torch.tensor(0.7), scores), {"x": seen, "y": right}) == 1.0
    right[0, 0] = 0
    assert agreement(scores, (seen, right)) == pytest.approx(6 / 8)
    right[0, 0, 0] = 255  # a border, which no loss counts
    assert agreement(scores, (seen, right)) == pytest.approx(6 / 7)
    assert agreement(scores.movedim(1, -1), (seen, right)) == pytest.approx(6 / 7)
    assert labels(scores, (seen, torch.full_like(right, 255))) is None
    assert labels(scores, (seen, torch.full_like(right, 3))) is None
    assert labels(torch.zeros(2, 3), (seen, torch.tensor([255, 1]))) is None  # a sample has one


def test_a_loss_before_the_logits_is_not_what_a_model_is_judged_by():
    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x, labels):
            logits = self.net(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    model = WithLoss()
    loader = [{"x": x, "labels": y} for x, y in labelled(model.net)]
    with torch.no_grad():
        for layer in norms(model.net):
            layer.running_mean += 3 * layer.running_var.sqrt()
    finding = batchnorm.diagnose(model, loader).findings[0]
    assert (finding.code, finding.severity) == ("BN104", "warning")
    assert finding.tried.startswith("metric ")


def test_statistics_that_were_kept_in_bfloat16():
    model = network()
    with torch.no_grad():
        for layer in norms(model):
            nn.init.normal_(layer.weight, 1, 0.1)
            layer.running_mean.copy_((layer.running_mean + 3).bfloat16())
            layer.running_var.copy_(layer.running_var.bfloat16())
    assert "BN105" in {f.code for f in batchnorm.diagnose(model, batches()).findings}
    whole = copy.deepcopy(model).bfloat16().float()
    assert "BN105" not in {f.code for f in batchnorm.diagnose(whole, batches()).findings}


def test_statistics_of_each_kind_are_tried_before_they_are_advised():
    """Trained on batches of two scales in turn: each batch was normalised by its own."""
    model = network()
    kinds = [x if i % 2 else 6 * x + 20 for i, x in enumerate(batches())]
    batchnorm.recalibrate(model, kinds, progress=False)
    with torch.no_grad():
        loader = [(x, model.train()(x).argmax(1)) for x in kinds]
    batchnorm.recalibrate(model.eval(), kinds, progress=False)
    report = batchnorm.diagnose(model, loader, accuracy)
    first = report.findings[0]
    assert (first.code, report.ok) == ("BN116", False)
    assert first.fix.startswith("per-domain statistics: batchnorm.convert(model), and with batchnorm.bank")
    assert report.evidence.by_domain.after > report.evidence.metric("exact") + 0.1
    assert report.evidence.passes <= 8


def by_frequency(count, low, shares, seed):
    """Sequences around 0 whose class, the model's output, is their frequency."""
    g = torch.Generator().manual_seed(seed)
    y = torch.multinomial(torch.tensor(shares), count, replacement=True, generator=g)
    tone = low * (1 + y[:, None, None])
    phase = 6.28 * torch.rand(count, 1, 1, generator=g)
    return (tone * torch.arange(64) + phase).sin() + 0.1 * torch.randn(count, 1, 64, generator=g), y


@pytest.mark.parametrize(("low", "by_class"), [(0.2, True), (0.1, False)])
def test_other_shares_of_predicted_classes_explain_no_other_spectrum_within_them(low, by_class):
    """The mean of every class is 0, whatever its frequency; half of it is another class to the model, or none."""
    a, b = Sample(), Sample()
    x, y = by_frequency(600, 0.2, [1.0, 1.0, 1.0], 0)
    a.add(x, nn.functional.one_hot(y, 3).float())
    x, y = by_frequency(600, low, [1.0, 6.0, 1.0], 1)
    b.add(x, nn.functional.one_hot(y, 3).float())
    found = difference(a, b)
    assert found.by_class == by_class
    assert ("times as fast" in found.words) != by_class


def test_another_length_is_said_though_the_predicted_classes_have_other_shares():
    a, b = Sample(), Sample()
    x, y = by_frequency(600, 0.2, [1.0, 1.0, 1.0], 0)
    a.add(x, nn.functional.one_hot(y, 3).float())
    x, y = by_frequency(600, 0.2, [1.0, 6.0, 1.0], 1)
    b.add(x[:, :, ::2], nn.functional.one_hot(y, 3).float())
    found = difference(a, b)
    assert not found.by_class
    assert "evaluation inputs are 32, training inputs 64" in found.words
