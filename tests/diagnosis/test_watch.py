"""A watched run: every rule fires at its step, once, and not on the same run done right."""

import io
import json
import math
import os
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import batchnorm
from batchnorm.diagnosis import watch
from batchnorm.diagnosis.run.distances import hold, moved, sampled
from batchnorm.diagnosis.run.rules import RUN_RULES
from batchnorm.diagnosis.run.watching import BatchNormWarning
from batchnorm.errors import BatchNormError


class Net(nn.Module):
    def __init__(self, layer=nn.BatchNorm1d, checkpointed=False):
        super().__init__()
        self.first, self.bn, self.last = nn.Linear(4, 16), layer(16), nn.Linear(16, 2)
        self.checkpointed = checkpointed

    def forward(self, x):
        x = self.first(x)
        x = checkpoint(self.bn, x, use_reentrant=False) if self.checkpointed else self.bn(x)
        return self.last(x.relu())


def train(model, length=60, optimizer=None, before=None, batch=64, **options):
    """Train under watch; the report, and the warnings as (code, step)."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with watch(model, optimizer, **options) as report:
            for step in range(length):
                if before:
                    before(model, step)
                x = torch.randn(batch, 4, generator=generator)
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
    texts = [str(w.message) for w in said if issubclass(w.category, BatchNormWarning)]
    return report, [(t[:5], int(t.split("step ")[1].split(":")[0])) for t in texts]


def momentum_zero(model):
    model.bn.momentum = 0.0


def keras(model):
    model.bn.momentum = 0.9


def untracked(model):
    model.bn.track_running_stats = False


def frozen(model):
    model.bn.requires_grad_(False)


def poison(model, step):
    if step == 2:
        with torch.no_grad():
            model.bn.running_mean[0] = torch.nan


def evaluate(model, step):
    if step == 3:
        with torch.no_grad():
            model(torch.randn(64, 4))


def perturb(model, step):
    model(torch.randn(64, 4)).sum().backward()


def rush(model, step):
    with torch.no_grad():
        model.first.bias.add_(0.05)


CASES = {
    "BN301": (lambda: Net(checkpointed=True), None, {}, 1),
    "BN302": (lambda: Net(), frozen, {}, 1),
    "BN303": (lambda: Net(), evaluate, {}, 3),
    "BN305": (lambda: Net(), poison, {}, 3),
    "BN306": (lambda: Net(), momentum_zero, {}, 1),
    "BN307": (lambda: Net(), keras, {}, 1),
    "BN308": (lambda: Net(), None, {"steps": 20}, 1),
    "BN310": (lambda: Net(), rush, {}, 60),
    "BN311": (lambda: Net(), perturb, {}, 1),
    "BN312": (lambda: Net(), untracked, {}, 1),
}


def run(code):
    make, change, options, _ = CASES[code]
    model = make()
    every_step = change in (evaluate, poison, perturb, rush)
    if change is not None and not every_step:
        change(model)
    return train(model, before=change if every_step else None, **options)


@pytest.mark.parametrize("code", CASES)
def test_fires_at_its_step_once_and_names_the_layer(code):
    report, said = run(code)
    assert (code, CASES[code][3]) in said
    assert len([c for c, _ in said if c == code]) == 1
    assert [f.layer for f in report.findings if f.code == code] == ["" if code == "BN311" else "bn"]
    assert not report.ok
    assert report.findings[0].code == code


@pytest.mark.parametrize("layer", [nn.BatchNorm1d, batchnorm.BatchNorm1d], ids=["stock", "ours"])
def test_a_healthy_run_is_silent(layer):
    report, said = train(Net(layer), length=120)
    assert said == []
    assert report.findings == []
    assert report.ok
    assert report.verdict == "nothing is wrong with the running statistics so far"
    assert report.evidence.steps == report.evidence.forwards == report.layers["bn"].updates == 120


def test_checkpointing_our_layer_counts_once():
    report, said = train(Net(batchnorm.BatchNorm1d, checkpointed=True))
    assert said == []
    assert report.layers["bn"].updates == 60


def test_skipped_batches_are_a_note():
    def broken(model, step):
        if step == 2:
            model(torch.full((64, 4), torch.nan))

    report, _ = train(Net(batchnorm.BatchNorm1d), before=broken)
    assert [f.severity for f in report.findings if f.code == "BN309"] == ["note"]
    assert report.layers["bn"].skipped == 1
    stock, _ = train(Net(batchnorm.BatchNorm1d))
    assert "BN309" not in {f.code for f in stock.findings}


def test_pause_freeze_and_recalibration_are_not_mistaken():
    def paused(model, step):
        with batchnorm.pause(model):
            model(torch.randn(64, 4)).sum().backward()
        with torch.no_grad(), batchnorm.pause(model):
            model(torch.randn(64, 4))
        if step % 20 == 0:
            batchnorm.recalibrate(model, [torch.randn(64, 4) for _ in range(4)])
            model.eval()(torch.randn(8, 4))
            model.train()

    for layer in (nn.BatchNorm1d, batchnorm.BatchNorm1d):
        report, _ = train(Net(layer), before=paused)
        assert {f.code for f in report.findings} <= {"BN311"}
    model = batchnorm.freeze(Net())
    model.bn.requires_grad_(False)
    report, said = train(model)
    assert (report.findings, said) == ([], [])


def test_every_rule_has_a_case():
    assert {rule.code for rule in RUN_RULES} == {*CASES, "BN304", "BN309", "BN313", "BN314"}


def test_drift_gain_and_window_are_what_they_say(tmp_path):
    """A constant distance: running mean 0, variance 1, batches of mean 3, momentum 0.01."""
    layer = nn.BatchNorm1d(2, momentum=0.01, eps=1e-9)
    x = torch.tensor([[1.0, 1.0], [5.0, 5.0]])
    report = watch(layer, every=1, to=tmp_path / "run.jsonl")
    for _ in range(3):
        layer(x).sum().backward()
    with pytest.warns(BatchNormWarning, match="BN308"):
        report.close()
    line = json.loads((tmp_path / "run.jsonl").read_text().splitlines()[0])
    assert line["step"] == 1
    first = line["layers"][""]
    assert first["drift"] == pytest.approx(3.0)
    # The unbiased variance of (1, 5) is 8.
    assert first["variance_log_ratio"] == pytest.approx(math.log(8), abs=1e-3)
    assert first["gain"] == 0.01
    assert (first["updates"], first["window"]) == (1, 1.0)
    assert [p.step for p in report.layers[""].timeline] == [1, 2, 3]
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("momentum", [0.1, 0.003, None])
def test_what_the_buffers_moved_gives_the_batch_s_distance(momentum):
    layer = nn.BatchNorm2d(6, momentum=momentum)
    for _ in range(3):
        layer(torch.randn(32, 6, 4, 4) * 2 + 1)
    x = torch.randn(16, 6, 4, 4) * 3 - 2
    held = hold(layer)
    var, mean = torch.var_mean(x.double(), (0, 2, 3))
    scale = held[1].double() + layer.eps
    layer(x)
    shift, ratio = moved(layer, *held)
    assert torch.allclose(shift.double(), (mean - held[0]) / scale.sqrt(), rtol=2e-4, atol=1e-4)
    assert torch.allclose(ratio.double(), ((var + layer.eps) / scale).log(), rtol=2e-4, atol=1e-4)
    with torch.no_grad():
        layer.running_mean.copy_(held[0])
        layer.running_var.copy_(held[1])
    assert all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(sampled(layer, x), (shift, ratio), strict=True)
    )


def test_tensorboard_writer_gets_scalars():
    class Writer:
        def __init__(self):
            self.rows = []

        def add_scalar(self, name, value, step):
            self.rows.append((name, value, step))

    writer = Writer()
    train(Net(), length=30, to=writer)
    assert {name for name, _, _ in writer.rows} >= {"batchnorm/bn/drift", "batchnorm/bn/gain", "batchnorm/bn/updates"}
    assert [step for name, _, step in writer.rows if name == "batchnorm/bn/drift"] == [1, 2, 3, 4, 5, 10, 20, 30]


def test_a_run_changes_nothing_and_leaves_nothing_behind():
    states = []
    for watched in (False, True):
        torch.manual_seed(3)
        model = Net()
        if watched:
            train(model)
        else:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            generator = torch.Generator().manual_seed(0)
            for _ in range(60):
                optimizer.zero_grad()
                model(torch.randn(64, 4, generator=generator)).square().mean().backward()
                optimizer.step()
        states.append(model.state_dict())
        assert not model.bn._forward_pre_hooks
        assert not model._forward_hooks
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_long_timelines_are_thinned():
    layer = nn.BatchNorm1d(2)
    with watch(layer, every=1) as report:
        for _ in range(1200):
            layer(torch.randn(8, 2)).sum().backward()
    steps = [p.step for p in report.layers[""].timeline]
    assert len(steps) <= 513
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (1, 1200)


def test_bad_arguments(tmp_path):
    for options, sentence in (({"every": 0}, "every"), ({"steps": 0}, "steps"), ({"to": 3}, "to must be"),
                              ({"to": tmp_path / "no" / "a.jsonl"}, "existing folder")):  # fmt: skip
        with pytest.raises(BatchNormError, match=sentence):
            watch(Net(), **options)
    with pytest.raises(BatchNormError, match="has none"):
        watch(nn.Linear(2, 2))


def _rank(rank, port, apart, results):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(rank)
    model = nn.BatchNorm1d(4)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        with watch(model) as report:
            for _ in range(60):
                model(torch.randn(64, 4) + apart * rank).sum().backward()
    results[rank] = [f.code for f in report.findings]
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(("apart", "codes"), [(3.0, ["BN304"]), (0.0, [])])
def test_ranks(apart, codes):
    import torch.multiprocessing as mp

    results = mp.get_context("spawn").Manager().dict()
    mp.spawn(_rank, (29531 + int(apart), apart, results), nprocs=2)
    assert dict(results) == {0: codes, 1: codes}


def test_a_watched_model_can_be_saved_and_its_copy_is_not_watched():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    file = io.BytesIO()
    with warnings.catch_warnings(), watch(model) as watched:
        warnings.simplefilter("ignore")
        model(torch.randn(8, 3))
        torch.save(model, file)
    seen = watched.run.layers["1"].updates
    file.seek(0)
    again = torch.load(file, weights_only=False)
    x = torch.randn(8, 3)
    assert torch.equal(again(x), model(x))
    assert watched.run.layers["1"].updates == seen
    hooks = [h for m in again.modules() for h in (*m._forward_pre_hooks.values(), *m._forward_hooks.values())]
    assert hooks
    assert all(type(hook.__self__).__module__ == "contextlib" for hook in hooks)
