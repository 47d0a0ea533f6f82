"""What the predictions say of stored and adapted statistics: the numbers, the rule at its edges, small classifiers."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

import batchnorm
from batchnorm.models import adapt
from batchnorm.models.adapting.decide import (
    CLUSTERS,
    EARLY_GAIN,
    EVEN,
    EXCESS,
    FEWER_CLUSTERS,
    GAIN,
    NO_CLUSTERS,
    OVERWHELMED_PRIOR,
    SHARP_CLUSTERS,
    Choice,
    weigh,
)
from batchnorm.models.adapting.predictions import Predictions, predictions


def logits(*rows):
    return torch.tensor(rows, dtype=torch.float64).log()


def test_confidence_evenness_histogram_and_agreement_in_closed_form():
    stored = logits([0.5, 0.5 - 1e-9], [0.5, 0.5 - 1e-9], [0.8, 0.2], [0.6, 0.4])
    adapted = logits([1 - 1e-15, 1e-15], [1e-15, 1 - 1e-15], [1 - 1e-15, 1e-15], [1e-15, 1 - 1e-15])
    found = predictions({"stored": stored.split(3), "domain": adapted.split(3)})
    before, after = found["stored"], found["domain"]
    assert (before.confidence, before.gain, before.agreement) == (pytest.approx(0.6), 0.0, 1.0)
    assert (after.confidence, after.gain, after.agreement) == (pytest.approx(1.0), pytest.approx(0.4), 0.5)
    assert before.histogram == (1.0, 0.0)
    assert after.histogram == (0.5, 0.5)
    # log(2) of the mean prediction, and 1 / (2 * 4) that four samples of two classes lack by chance.
    assert after.evenness == pytest.approx(1 + 0.125 / math.log(2))
    share = torch.tensor([0.6, 0.4], dtype=torch.float64)
    assert before.evenness == pytest.approx(float(-(share * share.log()).sum() + 0.125) / math.log(2))


def test_one_cloud_has_no_clusters_and_classes_have_some():
    """Logits of one normal cloud, however sure they are, tell no classes; the same covariance from classes does."""
    draw = torch.Generator().manual_seed(1)
    classes = 4 * functional.one_hot(torch.arange(2000) % 5, 5).double()
    classes = classes + 0.3 * torch.randn(2000, 5, generator=draw, dtype=torch.float64)
    root = torch.linalg.cholesky(torch.cov(classes.T))
    cloud = classes.mean(0) + torch.randn(2000, 5, generator=draw, dtype=torch.float64) @ root.T
    found = predictions({"stored": [cloud], "domain": [classes]})
    for name in ("clusters", "sharp_clusters", "excess"):
        assert abs(getattr(found["stored"], name)) < 0.03
    assert found["domain"].clusters > 0.3
    assert found["domain"].sharp_clusters > 0.15
    assert found["domain"].excess > 0.2
    # The cloud in closed form: the normal's information, by many more draws.
    many = classes.mean(0) + torch.randn(200_000, 5, generator=draw, dtype=torch.float64) @ root.T

    def information(z):
        p = z.softmax(1)
        mean = p.mean(0)
        return float((torch.xlogy(p, p).sum(1).mean() - (mean * mean.log()).sum()) / math.log(5))

    expected = math.log((information(classes) + 0.02) / (information(many) + 0.02))
    assert found["domain"].clusters == pytest.approx(expected, abs=0.03)
    assert predictions({"stored": [cloud], "domain": [classes]}) == found  # no chance between two calls


def test_what_holds_no_class_predictions():
    z = torch.randn(8, 3)
    for output in (torch.randn(8, 1), torch.randn(8), torch.randn(8, 3, 4, 4), torch.zeros(8, 3).long(), None, (z, z),
                   z * torch.nan, {"loss": z}):  # fmt: skip
        assert predictions({"stored": [output], "domain": [output]}) is None
    assert predictions({"stored": [z], "domain": [z[:4]]}) is None

    class Output:
        logits = z

    for output in (z, z.half(), {"logits": z}, Output()):
        assert predictions({"stored": [output], "domain": [output]})["domain"].agreement == 1.0


TRIED = Choice("domain", "", 320, None, 0.5, 0.5)
CLEAR, APART, SHARP = {"clusters": CLUSTERS}, {"clusters": FEWER_CLUSTERS}, {"sharp_clusters": SHARP_CLUSTERS}
UP, DOWN = 1e-9, -1e-9


def seen(**changes):
    """Predictions that fall short of everything, but for what is given; half of them change."""
    given = {"gain": -1.0, "agreement": 0.5, "evenness": 1.0, "clusters": 0.0, "sharp_clusters": 0.0, "excess": 0.0}
    return Predictions(0.5, **{**given, **changes}, histogram=(0.5, 0.5))


STORED = seen(gain=0.0, agreement=1.0, clusters=NO_CLUSTERS + UP)
COLLAPSED = seen(gain=0.0, agreement=1.0, clusters=NO_CLUSTERS)


@pytest.mark.parametrize(
    ("stored", "early", "domain", "mode"),
    [
        (STORED, {}, {}, "stored"),
        (STORED, {}, {**CLEAR, "gain": 0.0}, "domain"),
        (STORED, {}, {**CLEAR, "gain": DOWN}, "stored"),
        (STORED, {}, {"clusters": CLUSTERS + DOWN, "gain": 0.0}, "stored"),
        (STORED, {}, {**CLEAR, "gain": 0.0, "evenness": EVEN}, "domain"),
        (STORED, {}, {**CLEAR, "gain": 0.0, "evenness": EVEN + DOWN}, "stored"),
        (STORED, {}, {**APART, "gain": GAIN / 2}, "domain"),
        (STORED, {}, {**APART, "gain": GAIN / 2 + DOWN}, "stored"),
        (STORED, {}, {"clusters": FEWER_CLUSTERS + DOWN, "gain": GAIN / 2}, "stored"),
        (COLLAPSED, {}, SHARP, "domain"),
        (COLLAPSED, {}, {"sharp_clusters": SHARP_CLUSTERS + DOWN}, "stored"),
        (COLLAPSED, {}, {**SHARP, "evenness": EVEN + DOWN}, "stored"),
        (STORED, {}, SHARP, "stored"),
        (STORED, {**APART, "excess": EXCESS, "gain": EARLY_GAIN / 2}, {}, "early"),
        (STORED, {**APART, "excess": EXCESS, "gain": EARLY_GAIN / 2 + DOWN}, {}, "stored"),
        (STORED, {**APART, "excess": EXCESS + DOWN, "gain": EARLY_GAIN / 2}, {}, "stored"),
        (STORED, {"clusters": FEWER_CLUSTERS + DOWN, "excess": EXCESS, "gain": EARLY_GAIN / 2}, {}, "stored"),
        (COLLAPSED, {**APART, "excess": EXCESS, "gain": -EARLY_GAIN / 2, "evenness": 0.2}, {}, "early"),
        (COLLAPSED, {**APART, "excess": EXCESS, "gain": -EARLY_GAIN / 2 + DOWN}, {}, "stored"),
        (COLLAPSED, {**APART, "excess": EXCESS, "gain": 0.0}, SHARP, "domain"),
        (COLLAPSED, None, SHARP, "domain"),
        (STORED, None, {}, "stored"),
    ],
)
def test_the_rule_at_each_of_its_edges(stored, early, domain, mode):
    found = {"stored": stored, "domain": seen(**domain)}
    if early is not None:
        found["early"] = seen(**early)
    result = weigh(TRIED, found)
    assert result.mode == mode
    assert result.predictions is found
    assert "stored: confidence 0.50" in result.reason


def test_without_predictions_only_an_overwhelming_shift_counts():
    assert weigh(replace(TRIED, early_prior=OVERWHELMED_PRIOR), None).mode == "early"
    assert weigh(replace(TRIED, early_prior=OVERWHELMED_PRIOR + UP), None).mode == "stored"


KINDS = torch.tensor([[1.0, 1, 0], [-1, 1, 0], [-1, -1, 0], [1, -1, 0]])[:, :, None, None] * 0.6


def images(labels, seed):
    g = torch.Generator().manual_seed(seed)
    return KINDS[labels] + torch.randn(len(labels), 3, 8, 8, generator=g)


def convolutions():
    layers = [m for i, o in ((3, 12), (12, 12), (12, 12))
              for m in (nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU())]  # fmt: skip
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))


def hidden():
    first, second = (nn.Linear(192, 24), nn.BatchNorm1d(24), nn.ReLU()), (nn.Linear(24, 24), nn.BatchNorm1d(24))
    return nn.Sequential(nn.Flatten(), *first, *second, nn.ReLU(), nn.Linear(24, 4))


@pytest.fixture(scope="module", params=[convolutions, hidden], ids=["convolutions", "hidden layers"])
def classifier(request):
    torch.manual_seed(0)
    model = request.param()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(40):
        labels = torch.randint(4, (64,))
        optimizer.zero_grad()
        functional.cross_entropy(model(images(labels, step)), labels).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def error(model, x, y):
    return 100 * float((model(x).argmax(1) != y).double().mean())


STREAMS = {
    "one class": torch.full((320,), 2),
    "95 % one class": torch.where(torch.arange(320) % 20 == 0, torch.arange(320) // 20 % 4, 1),
    "two classes": torch.arange(320) % 2,
    "three classes": torch.arange(320) % 3,
    "all": torch.arange(320) % 4,
}


@pytest.mark.parametrize("stream", STREAMS)
def test_clean_streams_of_few_classes_are_left_alone(classifier, stream):
    y = STREAMS[stream]
    x = images(y, 99)
    stored = error(classifier, x, y)
    result = adapt(classifier, x.split(32))
    assert error(classifier, x, y) <= stored + 1
    result.undo()
    if stream in ("one class", "95 % one class"):
        result = adapt(classifier, x.split(32), "domain")  # what it refuses
        assert error(classifier, x, y) > stored + 20
        result.undo()


def test_a_corrupted_stream_of_all_classes_is_repaired(classifier):
    y = STREAMS["all"]
    x = images(y, 98) * 0.3 + 1.5
    stored = error(classifier, x, y)
    result = adapt(classifier, x.split(32))
    assert result.choice.mode != "stored"
    assert error(classifier, x, y) < stored - 20
    result.undo()


def test_values_keep_the_stored_statistics_unless_the_shift_is_overwhelming():
    """A regression: outputs `(N, 1)` are values, `(N, 4)` are if so said."""
    torch.manual_seed(0)
    model = convolutions()
    with torch.no_grad():
        for _ in range(60):
            model(images(torch.randint(4, (64,)), 1))
    model.eval()
    model[-1] = nn.Linear(12, 1)
    far = images(STREAMS["all"], 3) * 3 + 20
    for x, mode in ((images(STREAMS["one class"], 3), "stored"), (far, "early")):
        result = adapt(model, x.split(32))
        assert result.choice.mode == mode, str(result.choice)
        assert result.choice.predictions is None
        result.undo()
    model[-1] = nn.Linear(12, 4)
    result = adapt(model, (images(STREAMS["all"], 3) + 1).split(32), outputs="values")
    assert (result.choice.mode, result.choice.predictions) == ("stored", None)
    assert "could be either" in result.choice.reason
    result.undo()
    with pytest.raises(batchnorm.BatchNormError, match="outputs must be 'classes' or 'values'"):
        adapt(model, outputs="logits")
    assert math.isfinite(result.choice.early_prior)
