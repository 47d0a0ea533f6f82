"""What experiments measure, against closed forms and simulations; thresholds at their edges; the budget."""

import copy
import math
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.diagnosis.experiments import Effect, Outcome
from batchnorm.diagnosis.experiments.class_shares import variation
from batchnorm.diagnosis.experiments.data import Data, limits
from batchnorm.diagnosis.experiments.differing import difference
from batchnorm.diagnosis.experiments.effect import HARM, NOISE, OUTPUT, SURE, quantile
from batchnorm.diagnosis.experiments.outcome import effect
from batchnorm.diagnosis.experiments.received import Received
from batchnorm.diagnosis.experiments.sample import Sample
from batchnorm.diagnosis.experiments.scores import Scorer
from tests.sampling import slow_but

GENERATOR = torch.Generator().manual_seed(0)
DATA = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))
LOADER = DATA.split(32)


def network(layers=2):
    torch.manual_seed(0)
    parts = [m for _ in range(layers) for m in (nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())]
    model = nn.Sequential(*parts, nn.Linear(8, 3))
    batchnorm.recalibrate(model, LOADER)
    return model


def accuracy(output, batch):
    return (output.argmax(1) == batch[1]).double().mean()


@pytest.mark.parametrize(("units", "expected"), [(2, 63.66), (3, 9.925), (9, 3.355), (31, 2.750), (10**6, 2.6)])
def test_the_quantile_is_students(units, expected):
    assert quantile(units) == pytest.approx(expected, rel=0.01)


def test_one_unit_proves_nothing():
    assert quantile(1) == math.inf
    assert Effect("x", 1, 0.0, 1.0, 1.0, math.inf, 1, 1.0).helps is False


def test_an_effect_helps_and_harms_at_its_edges():
    units = 10**6
    for scale, error in ((1.0, 0.0), (0.0, 1.0)):
        edge = max(SURE * error, HARM * scale)
        for factor, said in ((1.01, True), (0.99, False)):
            assert Effect("x", 1, 0, 0, factor * edge, error, units, scale).helps is said
            assert Effect("x", 1, 0, 0, -factor * edge, error, units, scale).harms is said
    assert not Effect("x", 1, 0, 0, 5.0, 1.0, units, 1.0).harms


def test_without_a_metric_the_output_decides_at_its_edges():
    for noise, edge in ((0.0, OUTPUT), (OUTPUT, NOISE * OUTPUT)):
        assert Effect("x", 1, moved=1.01 * edge, noise=noise).helps is True
        assert Effect("x", 1, moved=0.99 * edge, noise=noise).helps is False
    assert Effect("x", 1).helps is None
    assert not Effect("x", 1, moved=9.0).harms
    assert "without metric=" in Effect("x", 1, moved=1.0).sentence()


def test_the_paired_error_is_that_of_the_differences():
    before, after = Outcome("a"), Outcome("b")
    x = torch.rand(200, generator=GENERATOR, dtype=torch.float64)
    d = 0.1 + 0.05 * torch.randn(200, generator=GENERATOR, dtype=torch.float64)
    for index in range(4):
        part = slice(50 * index, 50 * index + 50)
        before.units[index] = (x[part].tolist(), [1] * 50)
        after.units[index] = ((x + d)[part].tolist(), [1] * 50)
    found = effect("x", before, after, Scorer(lambda o, b: 0.0, higher_is_better=True))
    assert found.gain == pytest.approx(float(d.mean()))
    assert found.error == pytest.approx(float(d.std() / 200**0.5))
    down = effect("x", before, after, Scorer(lambda o, b: 0.0, higher_is_better=False))
    assert down.gain == pytest.approx(-float(d.mean()))


def test_a_metric_is_taken_by_sample_where_it_is_a_mean_over_samples():
    x, y = torch.randn(40, 3, generator=GENERATOR), torch.randint(3, (40,), generator=GENERATOR)
    scorer = Scorer(accuracy)
    values, sizes = scorer.score("stored", x, (x, y))
    assert values == [float(v) for v in (x.argmax(1) == y)]
    assert sizes == [1] * 40
    whole = Scorer(lambda output, batch: float(output.max()))
    assert whole.score("stored", x, (x, y)) == ([float(x.max())], [40])
    assert whole.unit == "batches"


def test_a_last_batch_of_one_sample_leaves_the_metric_one_of_samples():
    torch.manual_seed(0)
    right = torch.arange(9) % 2
    loader = [(right[:8, None], right[:8]), (right[8:, None], right[8:])]
    scorer, outcomes = Scorer(accuracy, True), []
    for wrong in (3, 1):
        scorer.start()
        outcomes.append(Outcome(f"{wrong} wrong"))
        for index, (_, y) in enumerate(loader):
            output = nn.functional.one_hot((y + (torch.arange(len(y)) < wrong) * (index == 0)) % 2, 2).float()
            outcomes[-1].take(index, output, len(y), scorer.score(outcomes[-1].condition, output, (None, y), index))
    assert scorer.unit == "samples"
    found = effect("", *outcomes, scorer)
    assert (found.units, found.gain) == (9, pytest.approx(2 / 9))


def test_passes_that_were_cut_in_other_ways_are_paired_by_batch():
    before, after = Outcome("before"), Outcome("after")
    before.units = {0: ([0.0, 1.0], [1, 3]), 1: ([0.5], [4])}
    after.units = {0: ([1.0], [4]), 1: ([0.75], [4])}
    found = effect("", before, after, Scorer(accuracy, True))
    assert (found.units, found.before, found.after, found.gain) == (2, 0.625, 0.875, 0.25)


class Holding(dict):
    """An output as some libraries give it."""

    def __getattr__(self, name):
        return self[name]


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("ordered", [False, True])
def test_which_way_a_metric_goes_is_learnt_from_outputs_held_against_other_samples(sign, ordered):
    y = torch.randint(5, (640,), generator=GENERATOR)
    y = y.sort().values if ordered else y
    outputs = nn.functional.one_hot(y, 5) * 3 + torch.randn(640, 5, generator=GENERATOR)
    scorer = Scorer(lambda output, batch: sign * float(accuracy(output, batch)))
    for output, labels in zip(outputs.split(32), y.split(32), strict=True):
        scorer.score("stored", output, (output, labels))
    assert scorer.direction == sign
    nested = Scorer(lambda output, batch: sign * float(accuracy(output.logits, batch)))
    nested.score("stored", Holding(logits=outputs, loss=None), (outputs, y))
    assert (nested.unit, nested.direction) == ("samples", sign)
    free = Scorer(lambda output, batch: float(output.square().mean()))
    for output in outputs.split(32):
        free.score("stored", output, (output,))
    assert free.direction == 0


@pytest.mark.parametrize("kind", ["normal", "lognormal", "student", "binary"])
def test_the_errors_of_mean_and_variance_cover_what_they_should(kind):
    """Within 2 standard errors in about 95 of 100, for variances too: the fourth moment, not the mean's error."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        z = torch.randn(*shape, generator=generator, dtype=torch.float64)
        if kind == "lognormal":
            return (0.5 * z).exp()
        if kind == "student":
            return z / (torch.distributions.Chi2(8.0).sample(shape).double() / 8).sqrt()
        return (z > 1).double() if kind == "binary" else z

    torch.manual_seed(1)
    truth = draw(2_000_000)
    mean, var = truth.mean(), truth.var()
    received = Received()
    for part in draw(400, 1000).split(100):
        received.add(part)
    z = (received.values.mean - mean) / received.standard_error
    assert float((z.abs() < 1.96).double().mean()) == pytest.approx(0.95, abs=0.03)
    z = (received.values.var(1) - var) / received.variance_error
    assert float((z.abs() < 1.96).double().mean()) == pytest.approx(0.95, abs=0.08 if kind != "normal" else 0.03)


def test_positions_are_no_independent_values():
    """The variance of samples that are constant over their positions is uncertain by their number, not by positions."""
    received, flat = Received(), Received()
    x = torch.randn(64, 500, generator=GENERATOR)
    received.add(x[:, :, None].expand(64, 500, 49).reshape(64, 500, 7, 7))
    flat.add(x)
    assert torch.allclose(received.variance_error, flat.variance_error, rtol=1e-5)
    assert received.effective_values == pytest.approx(64, rel=0.01)
    assert received.fewest_values == 64 * 49
    free = Received()
    free.add(torch.randn(2, 500, 14, 14, generator=GENERATOR))
    assert free.effective_values == pytest.approx(2 * 196, rel=0.2)


def test_weights_say_which_positions_count():
    x, w = torch.randn(6, 3, 10, generator=GENERATOR), torch.rand(6, 1, 10, generator=GENERATOR) > 0.4
    received = Received()
    received.add(torch.where(w, x, torch.nan), w.float())
    data = x.movedim(1, 2)[w[:, 0]].double()
    assert torch.allclose(received.values.mean, data.mean(0))
    assert torch.allclose(received.values.var(1), data.var(0))


def test_what_a_budget_may_be():
    assert limits(None) == (None, None)
    assert limits(100) == (100, None)
    assert limits("30 s") == (None, 30.0)
    assert limits("2 min") == (None, 120.0)
    for wrong in (0, -1, True, 1.5, "soon", "0 s"):
        with pytest.raises(batchnorm.BatchNormError, match="budget"):
            limits(wrong)


def test_a_budget_of_samples_is_kept_and_said():
    report = batchnorm.diagnose(network(), LOADER, budget=100)
    assert report.evidence.samples == 128
    assert "128 of 512 samples" in str(report)


def test_a_budget_of_seconds_is_kept():
    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network()

        def forward(self, x):
            time.sleep(0.02)
            return self.body(x)

    start = time.perf_counter()
    report = batchnorm.diagnose(Slow(), LOADER * 8, budget="1 s", progress=False)
    assert report.evidence.samples < 1024
    assert time.perf_counter() - start < 8


@pytest.mark.parametrize("depth", slow_but([2, 20, 60], {2, 20}))
def test_at_most_eight_passes_however_many_layers(depth):
    model = network(depth)
    for layer in model:
        if isinstance(layer, nn.BatchNorm1d):
            layer.running_mean += 0.5
    model.insert(len(model) - 1, nn.Dropout(0.5))
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    y = torch.randint(3, (512,), generator=GENERATOR).split(32)
    report = batchnorm.diagnose(model, list(zip(LOADER, y, strict=True)), accuracy)
    assert sum(seen) <= 8 * 512 + 32
    assert report.evidence.passes <= 8


def test_batches_are_given_alike_in_every_pass():
    dataset = torch.utils.data.TensorDataset(DATA)
    loader = torch.utils.data.DataLoader(dataset, batch_size=64, shuffle=True)
    data = Data(loader)
    first = [batch[0] for _, batch in data]
    assert all(torch.equal(a, b[0]) for a, (_, b) in zip(first, data, strict=True))
    data._kept = None  # as where memory is short: read again, in the same order
    generator = torch.Generator().manual_seed(3)
    loader = torch.utils.data.DataLoader(dataset, batch_size=64, shuffle=True, generator=generator)
    data = Data(loader)
    first = [batch[0] for _, batch in data]
    data._kept = None
    assert all(torch.equal(a, b[0]) for a, (_, b) in zip(first, data, strict=True))


def images(count=200, seed=0):
    """Smooth random images with a common structure."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 6, 6, generator=generator)
    x = nn.functional.interpolate(x, size=24, mode="bilinear")
    ramp = torch.linspace(0, 1, 24)
    return (0.2 * x + ramp[:, None] * 0.6 + torch.tensor([0.1, 0.2, 0.3])[:, None, None]).clamp(0, 1)


def compared(change, first=images, **options):
    a, b = Sample(), Sample()
    for x in first(seed=0, **options).split(50):
        a.add(x, None)
    for x in change(first(seed=1, **options)).split(50):
        b.add(x, None)
    return difference(a, b)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x / 255, "0.0039 x (bytes against 0 to 1: 255 times smaller) of"),
        (lambda x: x * 3 - 1, "3 x - 1"),
        (lambda x: 1 - x, "-1 x + 1"),
        (lambda x: 0.5 * x + 2, "0.51 x + 2"),
        (lambda x: (x - torch.tensor([0.2, 0.5, 0.8])[:, None, None]) / torch.tensor([0.1, 0.2, 0.4])[:, None, None],
         "channel 0 is 10 x - 2, channel 1 is 5 x - 2.5, channel 2 is 2.6 x - 2"),
        (lambda x: nn.functional.avg_pool2d(nn.functional.pad(x, (2, 2, 2, 2), mode="replicate"), 5, 1), "smoother"),
        (lambda x: x**3, "another curve"),
        (lambda x: x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2)),
         "have noise (standard deviation 0.2)"),
        (lambda x: x.flip(1), "in another order: training's 2, 1, 0"),
        (lambda x: x.transpose(2, 3), "transposed"),
        (lambda x: x.flip(2), "upside down"),
        (lambda x: x[:, :, :16, :16], "are 16 x 16, training inputs 24 x 24"),
        (lambda x: x, ""),
    ],
)  # fmt: skip
def test_what_differs_is_said(change, words):
    found = compared(change)
    assert words in found.words if words else found.words == ""


def rows(count=300, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 10, generator=generator) * (torch.arange(10) + 1) + torch.arange(10)


def test_features_that_differ():
    smaller = compared(lambda x: x * 0.03, rows)
    assert "0.03 x" in smaller.words
    torch.testing.assert_close(smaller.undo(rows() * 0.03), rows(), rtol=0.05, atol=0.1)
    assert compared(lambda x: x, rows).words == ""
    moved = compared(lambda x: torch.cat([x[:, :3], x[:, 3:4] * 1.8 + 32, x[:, 4:]], 1), rows)
    assert "column 3 is 1.9 x + 32" in moved.words
    assert "column 2" not in moved.words


def test_heavy_tails_do_not_differ_from_themselves():
    def tails(count=400, seed=0):
        torch.manual_seed(seed)
        return torch.distributions.StudentT(3.0).sample((count, 10)).exp().clamp_max(1e6)

    assert compared(lambda x: x, tails).words == ""


def test_total_variation():
    assert variation(torch.tensor([5, 5]), torch.tensor([10, 0])) == 0.5
    assert variation(torch.tensor([5, 5]), torch.tensor([1, 1])) == 0.0


def test_the_model_is_the_same_after_an_interrupt_in_any_pass():
    model = network()
    model[1].running_mean += 3
    model.train()
    before = copy.deepcopy(model.state_dict())
    for stop in (3, 20, 40, 60, 75):
        calls = []

        def metric(output, batch, calls=calls, stop=stop):
            calls.append(1)
            if len(calls) == stop:
                raise KeyboardInterrupt
            return 0.0

        with pytest.raises(KeyboardInterrupt):
            batchnorm.diagnose(model, LOADER, lambda o, b: metric(o, b) if len(o) == 32 else 1 / 0, progress=False)
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        assert model.training
        assert model[1].training
        assert not model[1]._forward_pre_hooks


def test_an_effect_without_a_direction_says_why():
    moved = Effect("recalibrate", 256, moved=0.612, noise=0.006)
    assert moved.sentence().endswith("without metric= it is not known whether that is harm")
    assert "no better than guessing" in replace(moved, scored=True).sentence()
