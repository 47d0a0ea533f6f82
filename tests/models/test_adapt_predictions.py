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
    COLLAPSED_RATIO,
    CONTENT_GAIN,
    INFORMATION_RATIO,
    LEAST_INFORMATION,
    OVERWHELMED_PRIOR,
    SETTLED_PRIOR,
    SMALLEST_CONFIDENCE,
    SMALLEST_GAIN,
    STANDARD_ERRORS,
    Choice,
    weigh,
)
from batchnorm.models.adapting.predictions import Compared, Predictions, compare


def logits(*rows):
    return torch.tensor(rows, dtype=torch.float64).log()


def test_confidence_information_histogram_and_agreement_in_closed_form():
    stored = logits([0.5, 0.5], [0.5, 0.5 - 1e-9], [0.8, 0.2], [0.6, 0.4])
    adapted = logits([1 - 1e-15, 1e-15], [1e-15, 1 - 1e-15], [1 - 1e-15, 1e-15], [1e-15, 1 - 1e-15])
    found = compare(stored.split(3), adapted.split(3))
    assert found.stored.confidence == pytest.approx(0.6)
    assert found.adapted.confidence == pytest.approx(1.0)
    assert found.adapted.information == pytest.approx(1.0)  # two classes told apart for sure
    assert found.adapted.histogram == (0.5, 0.5)
    assert found.stored.histogram == (1.0, 0.0)
    assert found.agreement == 0.5
    assert found.gain == pytest.approx(0.4)
    gains = torch.tensor([0.5, 0.5, 0.2, 0.4])
    assert found.standard_error == pytest.approx(float(gains.std()) / 2)
    assert compare([logits([0.3, 0.7])], [adapted]) is None
    same = compare([logits([0.3, 0.7], [0.3, 0.7])], [logits([0.3, 0.7], [0.7, 0.3])])
    assert same.stored.information == pytest.approx(0.0)


def test_what_holds_no_class_predictions():
    z = torch.randn(8, 3)
    for output in (torch.randn(8, 1), torch.randn(8), torch.randn(8, 3, 4, 4), torch.zeros(8, 3).long(), None, (z, z),
                   z * torch.nan, {"loss": z}):  # fmt: skip
        assert compare([output], [output]) is None

    class Output:
        logits = z

    for output in (z, z.half(), {"logits": z}, Output()):
        assert compare([output], [output]).agreement == 1.0


TRIED = Choice("mixed", "", 320, None, 0.5, 0.5, 20.0, 0.5)
OPEN = replace(TRIED, remaining_prior=SETTLED_PRIOR / 2)


def seen(gain, stored=0.5, adapted=0.5, confidence=0.9, agreement=0.0, error=0.0):
    return Compared(
        Predictions(confidence - gain, stored, (1.0,)), Predictions(confidence, adapted, (1.0,)), agreement, gain, error
    )


UP, DOWN = 1 + 1e-6, 1 - 1e-6


@pytest.mark.parametrize(
    ("choice", "found", "layers", "mode"),
    [
        (TRIED, seen(SMALLEST_GAIN * UP), 3, "mixed"),
        (TRIED, seen(SMALLEST_GAIN * DOWN), 3, "stored"),
        (TRIED, seen(SMALLEST_GAIN / 2 * UP, agreement=0.5), 3, "mixed"),
        (TRIED, seen(SMALLEST_GAIN / 2 * DOWN, agreement=0.5), 3, "stored"),
        (TRIED, seen(0.2, error=0.2 / STANDARD_ERRORS * DOWN), 3, "mixed"),
        (TRIED, seen(0.2, error=0.2 / STANDARD_ERRORS * UP), 3, "stored"),
        (replace(TRIED, mode="stored"), seen(CONTENT_GAIN * UP), 3, "mixed"),
        (replace(TRIED, mode="stored"), seen(CONTENT_GAIN * DOWN), 3, "stored"),
        (TRIED, seen(0.2, confidence=SMALLEST_CONFIDENCE * UP), 2, "mixed"),
        (TRIED, seen(0.2, confidence=SMALLEST_CONFIDENCE * DOWN), 2, "stored"),
        (TRIED, seen(0.2, confidence=SMALLEST_CONFIDENCE * DOWN), 3, "mixed"),
        (TRIED, seen(-0.2, 0.2, 0.2 * INFORMATION_RATIO * UP), 3, "mixed"),
        (TRIED, seen(-0.2, 0.2, 0.2 * INFORMATION_RATIO * DOWN), 3, "stored"),
        (replace(TRIED, remaining_prior=SETTLED_PRIOR), seen(-0.2, 0.2, 0.8), 3, "mixed"),
        (replace(TRIED, remaining_prior=SETTLED_PRIOR * DOWN), seen(-0.2, 0.2, 0.8), 3, "stored"),
        (replace(TRIED, mode="stored"), seen(-0.2, 0.2, 0.8), 3, "stored"),
        (TRIED, seen(-0.2, 0.2, 0.8), 2, "stored"),
        (replace(OPEN, early_prior=OVERWHELMED_PRIOR), seen(-0.2, LEAST_INFORMATION, 0.0), 3, "mixed"),
        (replace(OPEN, early_prior=OVERWHELMED_PRIOR), seen(-0.2, LEAST_INFORMATION * UP, 0.0), 3, "stored"),
        (replace(OPEN, early_prior=OVERWHELMED_PRIOR * UP), seen(-0.2, LEAST_INFORMATION, 0.0), 3, "stored"),
        (replace(OPEN, early_prior=0.0), seen(-0.2, 0.05, 0.05 * COLLAPSED_RATIO * UP), 3, "mixed"),
        (replace(OPEN, early_prior=0.0), seen(-0.2, 0.05, 0.05 * COLLAPSED_RATIO * DOWN), 3, "stored"),
        (replace(OPEN, early_prior=0.0), seen(-0.2, 0.0, 0.9, SMALLEST_CONFIDENCE), 2, "mixed"),
        (replace(OPEN, early_prior=0.0), seen(-0.2, 0.0, 0.9, SMALLEST_CONFIDENCE * DOWN), 2, "stored"),
        (replace(TRIED, early_prior=OVERWHELMED_PRIOR), None, 3, "mixed"),
        (replace(TRIED, early_prior=OVERWHELMED_PRIOR * UP), None, 3, "stored"),
        (replace(TRIED, mode="stored", early_prior=0.0), None, 3, "stored"),
    ],
)
def test_the_rule_at_each_of_its_edges(choice, found, layers, mode):
    result = weigh(choice, found, layers)
    assert result.mode == mode
    assert result.predictions is found
    if found is not None:
        assert f"confidence {found.stored.confidence:.2f} with the stored statistics" in result.reason


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
    assert result.choice.mode == "mixed"
    assert error(classifier, x, y) < stored - 20
    assert result.choice.predictions.adapted.information > result.choice.predictions.stored.information
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
    for x, mode in ((images(STREAMS["one class"], 3), "stored"), (far, "mixed")):
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
