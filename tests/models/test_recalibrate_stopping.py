"""When to stop, when the error bar holds, and going on after a kill."""

import itertools
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import batchnorm
from batchnorm.models.recalibration import resume
from batchnorm.models.recalibration.correlation import student
from batchnorm.models.recalibration.exchangeable import Alike, ordered
from batchnorm.models.recalibration.streaming import Layout
from batchnorm.models.recalibration.targets import Target
from batchnorm.models.recalibration.totals import Totals, errors_in_std
from tests.sampling import slow_but

UPSTREAMS = ["batch", "population"]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.BatchNorm1d(16))


def draws(size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(size, 6, generator=generator) for _ in itertools.count())


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_until_reads_what_it_takes_and_the_error_is_as_small_as_it_says(upstream):
    asked = 0.05
    weight = network()[0].weight.detach().double()
    true_mean, true_var = network()[0].bias.detach(), weight.square().sum(1)
    errors = []
    for seed in range(8):
        model = network()
        result = batchnorm.recalibrate(model, draws(seed=seed), upstream=upstream, until=asked)
        assert result.standard_error <= asked
        # A Gaussian's mean and standard deviation have errors 1/n and 1/(2n); the other layer's differ a little.
        assert 0.5 < result.samples / (1.5 / asked**2) < 3
        of_mean = (model[1].running_mean - true_mean) / true_var.sqrt()
        of_std = (model[1].running_var / true_var).sqrt() - 1
        errors.append(float((of_mean.square() + of_std.square()).mean()))
    assert asked / 2 < (sum(errors) / len(errors)) ** 0.5 < 1.3 * asked


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_until_never_stops_before_eight_batches_and_says_what_was_offered(upstream):
    data = next(draws(3200))
    result = batchnorm.recalibrate(network(), data.split(100), until=10.0, upstream=upstream)
    assert (result.batches, result.samples, result.offered) == (8, 800, 3200)
    assert "800 of the 3200 samples offered were enough" in str(result)
    few = batchnorm.recalibrate(network(), data[:700].split(100), until=10.0, upstream=upstream)
    assert few.batches == 7
    assert few.exchangeable is None
    assert few.standard_error != few.standard_error  # NaN: not known


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_sorted_data_are_read_to_the_end_and_said_to_be_sorted(upstream):
    data = next(draws(1600))
    data = data[data[:, 0].argsort()]
    result = batchnorm.recalibrate(network(), data.split(50), until=0.06, upstream=upstream)
    assert result.sorted
    assert result.exchangeable is False
    assert result.samples == 1600
    assert "order of the batches matters" in str(result)
    shuffled = data[torch.randperm(1600)]
    result = batchnorm.recalibrate(network(), shuffled.split(50), until=0.06, upstream=upstream)
    assert result.exchangeable
    assert result.samples < 1600


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_groups_in_random_order_are_said_to_be_grouped(upstream):
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(1, 6, generator=generator) + torch.randn(8, 6, generator=generator) for _ in range(40)]
    result = batchnorm.recalibrate(network(), batches, upstream=upstream)
    assert result.grouped
    assert not result.sorted
    assert result.exchangeable is False


@pytest.mark.slow
def test_false_alarms_are_as_rare_as_they_should_be():
    """1 % in all, half for each test; 300 runs of exchangeable heavy-tailed data that hang together by channel."""
    generator = torch.Generator().manual_seed(0)
    alarms = [0, 0]
    for run in range(300):
        k = [8, 16, 40][run % 3]
        common = torch.randn(k, 12, 1, generator=generator).exp()
        x = common * torch.randn(k, 12, 5, generator=generator).exp()
        totals, alike = Totals.empty(torch.arange(5) // 3), Alike()
        for batch in x.double():
            mean = batch.mean(0)
            totals.add(torch.full((1, 5), 12.0, dtype=torch.float64), mean[None], (batch - mean).square().sum(0)[None])
            alike.add(batch)
        alarms[0] += ordered(totals.sketches)
        alarms[1] += alike.grouped()
    # Binomial with rate 0.005: more than 6 of 300 has probability 0.001.
    assert max(alarms) <= 6, alarms


def test_totals_of_batches_at_once_one_by_one_and_merged_are_the_same():
    generator = torch.Generator().manual_seed(0)
    sizes = [3, 1, 7, 4, 9, 2, 5, 6, 8, 4]
    batches = [torch.randn(n, 4, generator=generator, dtype=torch.float64) * 2 + 50 for n in sizes]
    n = torch.tensor(sizes, dtype=torch.float64)
    mean = torch.stack([b.mean(0) for b in batches])
    m2 = torch.stack([(b - b.mean(0)).square().sum(0) for b in batches])
    at_once = Totals.of_batches(n, mean, m2)
    parts = [Totals.empty(torch.zeros(4, dtype=torch.long)) for _ in range(3)]
    for k in range(len(sizes)):
        for total in (parts[0], parts[1 + k % 2]):
            total.add(n[k].expand(1, 4), mean[k : k + 1], m2[k : k + 1])
    one_by_one, merged, other = parts
    merged.merge(other)
    whole = torch.cat(batches)
    for total in (at_once, one_by_one, merged):
        assert torch.allclose(total.mean, whole.mean(0), rtol=1e-14)
        assert torch.allclose(total.variance("total", 1), whole.var(0), rtol=1e-12)
        for kind in ("total", "within"):
            for a, b in zip(total.standard_errors(kind), one_by_one.standard_errors(kind), strict=True):
                assert torch.allclose(a, b, rtol=1e-9)
    # The formula itself, with the pooled moments in hand.
    w, centre = n[:, None] / n.sum(), whole.mean(0)
    spread = 10 / 9 * (w.square() * (mean - centre).square()).sum(0)
    q = m2 / n[:, None] + (mean - centre).square()
    of_var = 10 / 9 * (w.square() * (q - whole.var(0, correction=0)).square()).sum(0)
    for told, direct in zip(one_by_one.standard_errors("total"), (spread, of_var), strict=True):
        assert torch.allclose(told, direct.sqrt(), rtol=1e-9)
    assert torch.allclose(torch.stack(one_by_one.sketches), torch.stack(at_once.sketches), atol=1e-12)


def test_the_worst_layer_decides():
    layout = Layout.of({str(n): Target(str(n), nn.BatchNorm1d(n)) for n in (2, 3)})
    totals = Totals.empty(layout.owner)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        batch = torch.randn(10, 5, generator=generator, dtype=torch.float64)
        batch[:, 2:] += 3 * torch.randn(1, 3, generator=generator, dtype=torch.float64)
        mean = batch.mean(0)
        totals.add(torch.full((1, 5), 10.0, dtype=torch.float64), mean[None], (batch - mean).square().sum(0)[None])
    quiet, loud = errors_in_std(totals, torch.full((5,), 1e-5, dtype=torch.float64), "total")
    assert loud > 2 * quiet


SCRIPT = """
import time, torch
from torch import nn
import batchnorm

def run(upstream, path, pause):
    torch.manual_seed(0)
    model = nn.Sequential(*(m for i in range(4) for m in (nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())))
    class Loader:
        def __iter__(self):
            generator = torch.Generator().manual_seed(1)
            for _ in range(30):
                time.sleep(pause)
                yield torch.randn(20, 8, generator=generator)
    result = batchnorm.recalibrate(model, Loader(), upstream=upstream, resume=path, memory=1, exact=True)
    return [*model.state_dict().values()], result.layers["1"].standard_error
"""


@pytest.mark.parametrize("upstream", slow_but(UPSTREAMS, {"batch"}))
def test_killed_and_resumed_gives_the_same_bits_and_leaves_no_file(upstream, tmp_path):
    names = {}
    exec(SCRIPT, names)
    expected, error = names["run"](upstream, None, 0)
    path = tmp_path / "run.ckpt"
    command = f"{SCRIPT}\nrun({upstream!r}, {str(path)!r}, 0.05)"
    process = subprocess.Popen([sys.executable, "-c", command], env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert path.exists()
    got, error_again = names["run"](upstream, path, 0)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert error_again == error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_resume_after_an_interrupt_in_the_same_process(upstream, tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "_SHARE", 1e9)
    path = tmp_path / "run.ckpt"
    data = next(draws(400)).split(20)

    class Stopping:
        def __init__(self, at):
            self.at = at

        def __iter__(self):
            yield from data[: self.at]
            if self.at < len(data):
                raise KeyboardInterrupt

    whole, again = network(), network()
    batchnorm.recalibrate(whole, data, upstream=upstream)
    with pytest.raises(KeyboardInterrupt):
        batchnorm.recalibrate(again, Stopping(11), upstream=upstream, resume=path)
    if upstream == "batch":
        assert path.exists()
        with pytest.raises(batchnorm.BatchNormError, match="the same batches again"):
            batchnorm.recalibrate(again, [data[0], *data[2:]], upstream=upstream, resume=path)
        changed = network()
        with torch.no_grad():
            changed[0].weight[0, 0] += 1
        with pytest.raises(batchnorm.BatchNormError, match="with other weights"):
            batchnorm.recalibrate(changed, data, upstream=upstream, resume=path)
        with pytest.raises(batchnorm.BatchNormError, match="with other data"):
            batchnorm.recalibrate(again, data[1:], upstream=upstream, resume=path)
    batchnorm.recalibrate(again, Stopping(20), upstream=upstream, resume=path)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
    assert not path.exists()


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    path: Path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(batchnorm.BatchNormError, match="resume must be a checkpoint of recalibrate"):
        batchnorm.recalibrate(network(), next(draws(100)).split(20), resume=path)
    assert path.read_text() == "mine"


def autoregressive(batches, strength, seed=0):
    """Batches of 32 whose offsets are 5 % of the variance, each `strength` times the one before and something new."""
    generator = torch.Generator().manual_seed(seed)
    offset, rows = torch.randn(6, generator=generator) * 0.05**0.5, []
    for _ in range(batches):
        new = torch.randn(6, generator=generator)
        offset = strength * offset + (0.05 * (1 - strength**2)) ** 0.5 * new
        rows.append(torch.randn(32, 6, generator=generator) + offset)
    return rows


@pytest.mark.slow
def test_correlated_batches_are_worth_fewer_and_until_does_not_stop_at_eight():
    for seed in range(5):
        model = nn.BatchNorm1d(6)
        result = batchnorm.recalibrate(model, autoregressive(200, 0.9, seed), until=0.05)
        assert result.batches > 50
        whole = batchnorm.recalibrate(model, autoregressive(200, 0.9, seed))
        alone = batchnorm.recalibrate(model, autoregressive(200, 0.0, seed))
        # 1 + 2 * 0.76 * 0.9 / 0.1 = 14.7: the offsets are 76 % of the variance of a batch's mean.
        assert 4 < 200 / whole.layers[""].independent < 30
        assert alone.layers[""].independent > 120
        assert whole.standard_error > 1.5 * alone.standard_error


def test_the_squares_of_correlated_offsets_widen_the_variances_error():
    rows = torch.stack(autoregressive(1500, 0.9))
    layer = batchnorm.recalibrate(nn.BatchNorm1d(6), list(rows), upstream="batch").layers[""]
    squares = (rows.double() - rows.double().mean((0, 1))).square().mean(1)
    alone = squares.std(0) / 1500**0.5
    # The squared offsets have a sixth of the spread and are worth a fourth to a sixth of their number.
    assert 1.1 < float((layer.var_error_per_channel / alone).mean()) < 1.6
    shuffled = rows[torch.randperm(1500, generator=torch.Generator().manual_seed(0))]
    layer = batchnorm.recalibrate(nn.BatchNorm1d(6), list(shuffled), upstream="batch").layers[""]
    assert torch.allclose(layer.var_error_per_channel, alone, rtol=0.05)


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_a_loader_that_is_not_known_to_shuffle_says_nothing_of_what_is_to_come(upstream):
    data = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    loaders = {
        "list": list(data.split(20)),
        "generator": iter(data.split(20)),
        "shuffled": DataLoader(data, 20, shuffle=True, generator=generator),
    }
    for name, loader in loaders.items():
        result = batchnorm.recalibrate(nn.BatchNorm1d(3), loader, until=0.05, upstream=upstream)
        assert result.batches < 100
        assert result.error_bars_hold is (True if name == "shuffled" else None)
        assert ("not known to shuffle" in str(result).replace("\n", " ")) is (name != "shuffled")
    assert batchnorm.recalibrate(nn.BatchNorm1d(3), iter(data.split(20)), upstream=upstream).error_bars_hold


@pytest.mark.parametrize(("batches", "hold"), [(49, False), (51, True)])
def test_correlated_batches_must_be_fifty_times_as_many_as_they_are_alike(batches, hold):
    result = batchnorm.recalibrate(nn.BatchNorm1d(3), torch.randn(400, 3).split(4))
    row = replace(result.layers[""], independent=batches, heavy_tailed=False)
    assert replace(result, layers={"": row}, sorted=False).error_bars_hold is hold


def test_students_factor_and_heavy_tails():
    assert student(7) == pytest.approx(2.365, abs=2e-3)
    assert student(30) == pytest.approx(2.042, abs=1e-3)
    assert student(1e9) == pytest.approx(1.960, abs=1e-3)
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(40, 32, 50, generator=generator)
    chi = torch.randn(3, 40, 32, 50, generator=generator).square().sum(0) / 3
    light = batchnorm.recalibrate(nn.BatchNorm1d(50), list(normal))
    heavy = batchnorm.recalibrate(nn.BatchNorm1d(50), list(normal / chi.sqrt()))
    assert light.error_bars_hold
    assert heavy.error_bars_hold is False
    assert heavy.layers[""].heavy_tailed
    assert "heavy tails?" in str(heavy)
