"""What else must be seen if a cause is one: each prediction at its edge, and the failures it was written for."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.diagnosis.experiments import Effect, Outcome, another_eps
from batchnorm.diagnosis.experiments.changes import Change
from batchnorm.diagnosis.experiments.received import Received
from batchnorm.diagnosis.rules import bn108_too_few_steps as few_steps
from batchnorm.diagnosis.rules import bn112_keras_momentum as keras
from batchnorm.diagnosis.rules import bn114_few_values as few_values
from batchnorm.diagnosis.rules import bn117_unlike_batches as unlike
from batchnorm.diagnosis.rules import bn133_left_in_train, bn134_eps
from batchnorm.diagnosis.rules.examples import accuracy, batches, labelled, network, norms, settle
from batchnorm.diagnosis.rules.grounds import MISPLACED, ROUNDING, by_statistics, misplaced

HELPS = Effect("x", 1000, 0.5, 0.9, 0.4, 0.01, 1000, 1.0)
NOTHING = Effect("x", 1000, 0.9, 0.9, 0.0, 0.01, 1000, 1.0)
HARMS = Effect("x", 1000, 0.9, 0.5, -0.4, 0.01, 1000, 1.0)


def layer(**facts):
    usual = {
        "name": "1", "momentum": 0.9, "frozen": False, "reached": True, "damage": None, "drift": 1.0, "sound": True,
        "var_log_ratio": 0.0, "standard_error": 0.0, "var_log_error": 0.0, "spread": 1.0, "initial": False,
        "eval_drift": None, "eval_var_log_ratio": None,
    }  # fmt: skip
    return SimpleNamespace(**{**usual, **facts})


def evidence(*layers, **facts):
    usual = {"statistics": HELPS, "eval_exact": Effect("x", 0), "difference": Change(), "attempt": None}
    return SimpleNamespace(layers={one.name: one for one in layers}, **{**usual, **facts})


def test_what_recalibrating_does_is_asked_of_the_evaluation_data_first():
    differ = Change("evaluation inputs are 2 x of the training inputs x", (2.0, 0.0))
    assert by_statistics(evidence(eval_exact=HARMS, difference=differ)) is HARMS
    assert by_statistics(evidence(eval_exact=HELPS, statistics=NOTHING)) is HELPS
    assert by_statistics(evidence(eval_exact=HELPS, statistics=NOTHING, difference=differ)) is NOTHING
    assert by_statistics(evidence(eval_exact=HELPS, statistics=HARMS)) is HARMS


def test_a_momentum_is_that_of_another_framework_from_its_threshold_on():
    assert list(keras.look(evidence(layer(momentum=keras.LOWEST))))
    assert not list(keras.look(evidence(layer(momentum=keras.LOWEST - 1e-6))))


@pytest.mark.parametrize(("factor", "cause"), [(0.99, True), (1.01, False)])
def test_a_large_momentum_is_the_cause_of_as_much_as_it_can_do(factor, cause):
    edge = keras.SURE * 0.1 * (0.9 / 1.1) ** 0.5
    e = evidence(layer(mean_off=(factor * edge, 0.1)))
    assert keras.predicts(e).helps is cause


@pytest.mark.parametrize(("factor", "cause"), [(0.99, True), (1.01, False)])
def test_unlike_batches_are_the_cause_of_what_lies_within_their_reach(factor, cause):
    e = evidence(layer(mean_off=(factor * unlike.REACH * 0.2, 0.2)), layer(name="2", drift=0.0, mean_off=(9.0, 0.1)))
    assert unlike.predicts(e).helps is cause
    assert unlike.predicts(evidence(layer(initial=True, mean_off=(0.0, 1.0)))).helps is False


@pytest.mark.parametrize(
    ("values", "statistics", "warns"),
    [(few_values.INFINITE, NOTHING, True), (few_values.INFINITE + 1, NOTHING, False),
     (few_values.INFINITE + 1, HELPS, True)],
)  # fmt: skip
def test_few_values_matter_where_the_stored_statistics_suffer_or_there_are_next_to_none(values, statistics, warns):
    small = layer(collected=SimpleNamespace(fewest_values=values))
    e = evidence(small, statistics=statistics, by_batch=HARMS)
    assert few_values.predicts(e).helps is warns


@pytest.mark.parametrize(("part", "cause"), [(1.01, True), (0.99, False)])
def test_the_initial_value_is_the_cause_if_taking_it_out_closes_half_of_the_gap(part, cause):
    taken = []

    def attempt(what, statistics):
        taken.append(statistics["1"])
        return Effect(what, 500, gain=part * few_steps.CLOSES * HELPS.gain, error=0.01, units=500, scale=1.0)

    left = layer(
        momentum=0.1, counter=10, fades=True, plain=True, initial_share=(0.35, 0.1), remaining=0.9**10,
        rest_drift=None, rest_var_log_ratio=None, without_initial=lambda share: share,
    )  # fmt: skip
    other = layer(
        name="2", initial_share=(0.0, 1.0), fades=True, rest_drift=None, rest_var_log_ratio=None, remaining=0.1
    )
    assert few_steps.predicts(evidence(left, other, attempt=attempt)).helps is cause
    assert taken == [0.9**10]
    # Every layer that drifts shows it: there is nothing to ask.
    assert few_steps.predicts(evidence(left, attempt=attempt)).helps
    assert len(taken) == 1


def test_the_initial_value_is_taken_out_of_what_is_stored():
    model = nn.Sequential(nn.BatchNorm1d(4, momentum=0.1))
    x = torch.randn(256, 4) * 3 + 2
    for _ in range(10):
        model(x)
    found = batchnorm.diagnose(model, x.split(64)).layers["0"]
    mean, var = found.without_initial(0.9**10)
    torch.testing.assert_close(mean, x.mean(0).double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(var, x.var(0).double(), rtol=1e-5, atol=1e-5)


def received(shift):
    # Rows of mean `shift` and variance 1, exactly.
    found = Received()
    found.add(torch.tensor([[shift - 0.5**0.5], [shift + 0.5**0.5]], dtype=torch.float64))
    return found


class Lab:
    """Layers that receive what was said, whatever their eps; the first receives what it stores."""

    def __init__(self, module, then):
        self.active, self.then, self.scorer = {"0": module, "1": module}, then, None

    def run(self, data, what, within, evidence, every):
        evidence["0"], evidence["1"] = received(0.0), received(self.then)
        return Outcome(what)


@pytest.mark.parametrize(
    ("eps", "before", "after", "found"),
    [(0.1, 1.0, another_eps.FITS * 0.99, True), (0.1, 1.0, another_eps.FITS * 1.01, False),
     (0.1, another_eps.UNFIT * 2.02, 0.0, True), (0.1, another_eps.UNFIT * 1.98, 0.0, False),
     (another_eps.MATTERS * 1.01, 1.0, 0.0, True), (another_eps.MATTERS * 0.99, 1.0, 0.0, False)],
)  # fmt: skip
def test_another_eps_is_found_at_its_edges(monkeypatch, eps, before, after, found):
    module = nn.BatchNorm1d(1, eps=eps)
    stored = layer(eps=eps, mean=torch.zeros(1).double(), var=torch.ones(1).double(), in_eval=received(before))
    data = SimpleNamespace(room=lambda passes: True, batches=4)
    fits = layer(eps=eps, mean=torch.zeros(1).double(), var=torch.ones(1).double(), in_eval=received(0.0))
    monkeypatch.setattr(another_eps, "TRIED", (1e-5, 1e-3))
    rows = {"0": fits, "1": stored}
    other = another_eps.another_eps(Lab(module, after), data, rows, Outcome("stored"))
    assert (other is not None) is found
    assert module.eps == eps
    # Where the first layer does not receive what it stores either, it is not eps.
    rows["0"].in_eval = received(0.5)
    assert another_eps.another_eps(Lab(module, after), data, rows, Outcome("stored")) is None


def executed(report, model, **space):
    exec(report.findings[0].fix, {"batchnorm": batchnorm, "model": model, **space})
    return model


def right(model, loader):
    return sum(accuracy(model.eval()(x), (x, y)) * len(x) for x, y in loader) / sum(len(x) for x, _ in loader)


def test_the_fix_of_a_changed_eps_puts_it_back():
    model, loader, options = bn134_eps.broken()
    report = batchnorm.diagnose(model, loader, **options)
    assert (report.findings[0].code, report.ok) == ("BN134", False)
    executed(report, model)
    assert {module.eps for module in norms(model)} == {1e-5}
    assert batchnorm.diagnose(model, loader, **options).ok


@pytest.mark.parametrize("trained", [0.7, 0.03])
def test_an_eps_of_any_size_is_found_again(trained):
    model, _, options = bn134_eps.broken()
    for module in norms(model):
        module.eps = trained
    settle(model, batches())
    loader = [(x, model.eval()(x).detach()) for x in batches()]
    for module in norms(model):
        module.eps = 1e-6
    report = batchnorm.diagnose(model, loader, **options)
    assert report.findings[0].code == "BN134"
    assert report.evidence.another_eps.eps == pytest.approx(trained, rel=0.35)
    assert report.evidence.passes <= 8


def test_a_model_adapted_to_its_evaluation_data_is_left_as_it_is():
    model = network()
    loader = labelled(model)
    evaluation = [(3 * x + 2, y) for x, y in labelled(model, batches(seed=1))]
    batchnorm.recalibrate(model, evaluation)
    report = batchnorm.diagnose(model, loader, accuracy, eval_loader=evaluation)
    assert report.evidence.statistics.helps
    assert report.evidence.eval_exact.harms
    assert report.ok
    assert not any(f.fix.startswith("batchnorm.recalibrate(model, loader)") for f in report.findings)


def test_statistics_of_a_model_that_was_trained_with_0_and_1_are_found_again():
    model = network()
    for module in norms(model):
        module.reset_running_stats()
    loader = labelled(model)
    settle(model, batches())
    assert right(model, loader) < 0.8
    report = batchnorm.diagnose(model, loader, accuracy, higher_is_better=True)
    assert (report.findings[0].code, report.ok) == ("BN130", False)
    assert right(executed(report, model), loader) == 1.0


class Recurrent(nn.Module):
    """One layer for every step."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.norm, self.out = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x):
        for step in range(4):
            x = torch.relu(x + (2 + step) * self.norm(self.inner(x)))
        return self.out(x)


def test_several_calls_with_statistics_of_their_own_are_measured():
    model = Recurrent().train()
    x = torch.cat(batches())
    with torch.no_grad():
        loader = [(part, model(part).argmax(1)) for part in batches()]
        model(x)
    batchnorm.recalibrate(model, batches())
    report = batchnorm.diagnose(model, loader, accuracy)
    e = report.evidence
    assert len(e.layers["norm"].by_call) == 4
    assert e.by_call.helps
    assert e.by_call.after > e.metric("exact") + 0.1
    assert report.findings[0].code == "BN116"


@pytest.mark.parametrize("build", [nn.BatchNorm1d, batchnorm.BatchNorm1d])
def test_a_layer_without_statistics_gets_some_and_a_diagnosis_leaves_none(build):
    model = nn.Sequential(nn.Linear(8, 8), build(8, track_running_stats=False))
    x = torch.cat(batches())
    keys = list(model.state_dict())
    report = batchnorm.diagnose(model, batches(), eval_loader=list(x.split(2)))
    assert (report.findings[0].code, report.ok) == ("BN125", False)
    assert list(model.state_dict()) == keys
    assert model[1].running_mean is None
    executed(report, model, loader=batches())
    torch.testing.assert_close(model[1].running_mean, model[0](x).mean(0).detach())
    assert report.evidence.served.moved > 0.1
    assert batchnorm.diagnose(model, batches()).ok


def test_a_layer_left_in_train_mode_is_a_note_where_batches_are_large():
    model = bn133_left_in_train.InTrainMode()
    loader = labelled(model.body, list(torch.cat(batches()).split(512)))
    report = batchnorm.diagnose(model, loader, accuracy)
    assert [(f.code, f.severity) for f in report.findings if f.code == "BN133"] == [("BN133", "note")] * 2
    assert report.ok


def by_class(loader, size):
    """The loader's samples, class after class, in batches of this size."""
    x, y = (torch.cat(parts) for parts in zip(*loader, strict=True))
    order = y.argsort(stable=True)
    return list(zip(x[order].split(size), y[order].split(size), strict=True))


class TrainsInForward(nn.Module):
    """Its forward puts its body in train mode, whatever it was in."""

    def __init__(self):
        super().__init__()
        self.body = network()

    def forward(self, x):
        self.body.train()
        return self.body(x)


def test_a_forward_that_switches_to_train_mode_is_seen_and_does_not_stand_in_for_the_stored_statistics():
    model = TrainsInForward()
    loader = labelled(model.body)
    sorted_ = by_class(loader, 64)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    report = batchnorm.diagnose(model, loader, accuracy, eval_loader=sorted_)
    assert [(f.code, f.severity) for f in report.findings] == [("BN133", "warning")] * 2
    assert report.evidence.metric("stored") == 1
    assert report.evidence.served.before < 0.9 < report.evidence.served.after == 1
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    executed(report, model, loader=loader)
    assert batchnorm.diagnose(model, loader, accuracy, eval_loader=sorted_).ok


class Transductive(nn.BatchNorm1d):
    """Normalises with the batch in eval mode too."""

    def forward(self, x):
        if self.training:
            return super().forward(x)
        return nn.functional.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


class Stores(nn.BatchNorm1d):
    """Computes by itself what torch's layer does in eval mode."""

    def forward(self, x):
        if self.training:
            return super().forward(x)
        return (x - self.running_mean) / (self.running_var + self.eps).sqrt() * self.weight + self.bias


class Noisy(Stores):
    """With random numbers in eval mode."""

    def forward(self, x):
        return super().forward(x + 0.1 * torch.randn_like(x))


@pytest.mark.parametrize(("kind", "uses"), [(Transductive, True), (Stores, False), (Noisy, False)])
def test_a_forward_of_its_own_that_uses_the_batch_is_found(kind, uses):
    model = network()
    loader = labelled(model)
    classes = torch.cat([y for _, y in loader]).argsort(stable=True)
    sorted_ = [
        (x, y) for x, y in zip(*(torch.cat(v)[classes].split(8) for v in zip(*loader, strict=True)), strict=True)
    ]
    for layer in norms(model):
        layer.__class__ = kind
    report = batchnorm.diagnose(model, loader, accuracy, eval_loader=sorted_)
    found = [f for f in report.findings if f.code == "BN133"]
    assert report.evidence.uses_batch == ({"1", "4"} if uses else set())
    if not uses:
        assert found == []
        return
    assert [f.severity for f in found] == ["warning"] * 2
    assert "the forward of Transductive normalises with the batch in eval mode too" in found[0].message
    assert report.evidence.served.before < 0.9 < report.evidence.served.after == 1
    assert all("forward" not in vars(layer) for layer in norms(model))


class TwoHeads(nn.Module):
    """A network that returns a second head's output while it trains."""

    def __init__(self):
        super().__init__()
        self.body, self.second = network(), nn.Linear(8, 3)

    def forward(self, x):
        y = self.body(x)
        return (y, y) if self.training else y


def test_a_head_that_trains_alone_leaves_the_diagnosis_as_it_is():
    torch.manual_seed(0)
    model = TwoHeads()
    loader = labelled(model.body)
    report = batchnorm.diagnose(model, loader, metric=accuracy, progress=False)
    assert report.ok, report


def without_value(output, batch):
    return torch.nan if len(output) == 31 else accuracy(output, batch)


def test_a_metric_without_a_value_on_one_batch_is_taken_of_the_others():
    torch.manual_seed(0)
    model = network()
    loader = labelled(model)
    x, y = loader[-1]
    loader = [*loader, (x[:31], y[:31])]
    assert batchnorm.diagnose(model, loader, metric=without_value, progress=False).ok
    for one in norms(model):
        one.running_mean += 2 * one.running_var.sqrt()
    report = batchnorm.diagnose(model, loader, metric=without_value, progress=False)
    assert report.findings[0].code == "BN104"
    assert "metric 0" in report.findings[0].tried


def test_a_model_in_float64_is_judged_as_in_float32():
    """Its statistics may be read without a copy, and are other ones while an experiment runs."""
    found = []
    for dtype in (torch.float32, torch.float64):
        model = network().to(dtype)
        for one in norms(model):
            one.running_mean += 2 * one.running_var.sqrt()
        before = copy.deepcopy(model.state_dict())
        report = batchnorm.diagnose(model, [x.to(dtype) for x in batches()], progress=False)
        found.append([(finding.code, finding.layer) for finding in report.findings])
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert found[0]
    assert found[0] == found[1]


def test_a_variance_below_zero_is_no_rounding_from_its_thresholds_on():
    mean, var = torch.full((100,), 3.0), torch.full((100,), 1.0)  # a mean square of 10
    values = SimpleNamespace(mean=mean, var=lambda correction: var)
    layer = SimpleNamespace(mean=mean, var=var.clone(), weight=None, bias=None, initial=False)
    layer.collected = SimpleNamespace(values=values)
    assert misplaced(layer) == ""
    count = round(MISPLACED * 100)
    layer.var[:count] = -10 * ROUNDING * 1.01
    assert f"negative in {count} of 100" in misplaced(layer)
    layer.var[count - 1] = 1.0
    assert misplaced(layer) == ""
    layer.var[:count] = -10 * ROUNDING * 0.99
    assert misplaced(layer) == ""


@pytest.mark.parametrize("name", ["running_mean", "weight", "bias"])
def test_a_running_var_that_holds_another_vector_is_named(name):
    model = network()
    layer = norms(model)[0]
    with torch.no_grad():
        for parameter in (layer.weight, layer.bias):
            parameter.copy_(torch.rand(8, generator=torch.Generator().manual_seed(0)) + (parameter is layer.bias))
    settle(model, batches())
    assert all(f.code != "BN104" for f in batchnorm.diagnose(model, batches()).findings)
    layer.running_var.copy_(getattr(layer, name))
    first = batchnorm.diagnose(model, batches()).findings[0]
    assert (first.code, first.layer) == ("BN104", "1")
    assert first.message.startswith(f"running_var holds the values of {name}")


def test_variances_of_one_value_are_told_from_data_that_are_not_finite():
    said = []
    for names in (["running_var"], ["running_var", "running_mean"]):
        model = network()
        for name in names:
            getattr(norms(model)[0], name)[1] = torch.nan
        said.append(batchnorm.diagnose(model, batches()).findings[0].message)
    assert ["one value per channel" in message for message in said] == [True, False]


def test_an_activation_inside_the_layer_is_no_other_class():
    class Activated(nn.BatchNorm1d):
        def forward(self, input):
            return super().forward(input).relu()

    model = network()
    for layer in norms(model):
        layer.__class__ = Activated
    settle(model, batches())
    with torch.no_grad():
        loader = [(x, model.eval()(x)) for x in batches()]
    for layer in norms(model):
        layer.running_mean += 2
    report = batchnorm.diagnose(model, loader, lambda output, batch: float((output - batch[1]).square().mean()))
    assert report.findings[0].code == "BN104"
    assert all(f.code != "BN135" for f in report.findings)
    assert all("forward" not in vars(layer) for layer in norms(model))
