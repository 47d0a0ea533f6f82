"""The words that type checkers know are those that a call takes; another is refused, and the legal ones are named."""

import inspect
import typing
from typing import get_args

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm import interop, layers, models
from batchnorm.arguments import word
from batchnorm.interop import federate, states, statistics
from batchnorm.kernels import choice
from batchnorm.layers import activation, choices, estimators, extents, inference, renorm
from batchnorm.models import surgery
from batchnorm.models.adapting import adapt as adapting
from batchnorm.models.folding import fold as folding
from batchnorm.models.recalibration import result, totals

DATA = [torch.randn(16, 3) for _ in range(3)]
ONE = torch.ones(3)
STATE = nn.BatchNorm1d(3).state_dict()


def net():
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))


WORDS = {
    "nonfinite": (choices.NonFinite, lambda word: layers.Policy(nonfinite=word)),
    "too_few": (choices.TooFew, lambda word: layers.Policy(too_few=word)),
    "weights": (choices.WeightsAre, lambda word: layers.Policy(weights=word)),
    "update": (extents.Update, lambda word: layers.Ghost(4, word)),
    "per": (inference.Per, lambda word: layers.Mixture(weight=0.5, per=word)),
    "schedule": (renorm.LimitSchedule, lambda word: layers.Renorm(schedule=word)),
    "activation": (activation.Activation, lambda word: batchnorm.BatchNorm1d(3, activation=word)),
    "method": (layers.Method, lambda word: batchnorm.convert(net(), word)),
    "custom": (surgery.Custom, lambda word: batchnorm.convert(net(), custom=word)),
    "variance": (totals.Variance, lambda word: batchnorm.recalibrate(net(), DATA, variance=word, progress=False)),
    "upstream": (result.Upstream, lambda word: batchnorm.recalibrate(net(), DATA, upstream=word, progress=False)),
    "mode": (adapting.Mode, lambda word: batchnorm.adapt(net(), DATA, word)),
    "if_sorted": (adapting.IfSorted, lambda word: batchnorm.adapt(net(), DATA, if_sorted=word)),
    "outputs": (adapting.Outputs, lambda word: batchnorm.adapt(net(), DATA, outputs=word)),
    "rest": (folding.Rest, lambda word: batchnorm.fold(net(), DATA[0], rest=word, timing=0)),
    "padding": (folding.Padding, lambda word: batchnorm.fold(net(), DATA[0], padding=word, timing=0)),
    "batch_norm": (federate.Keep, lambda word: interop.rules(STATE, word)),
    "library": (states.Library, lambda word: interop.state_for(STATE, word)),
    "form": (statistics.Form, lambda word: interop.variance_from([2.0], word, mean=[1.0], eps=0.1)),
    "have": (statistics.Bias, lambda word: interop.rescale_variance(ONE, 8, word, "biased")),
    "want": (statistics.Bias, lambda word: interop.rescale_variance(ONE, 8, "biased", word)),
}


@pytest.mark.parametrize("argument", WORDS)
def test_a_call_takes_the_words_that_checkers_know_and_no_other(argument):
    words, call = WORDS[argument]
    for one in get_args(words):
        call(one)
    # Too many to name where one is near; None stands for the default of the first two.
    near = argument == "method"
    others = ["", get_args(words)[0].upper(), 3, [], torch.ones(2)]
    for other in others if argument in ("schedule", "activation") else [*others, None]:
        with pytest.raises(batchnorm.BatchNormError, match=f"^{argument} must be") as error:
            call(other)
        unsaid = [one for one in get_args(words) if one not in str(error.value)]
        assert unsaid == [] or (near and "did you mean" in str(error.value))


def test_the_methods_are_the_words_of_method():
    assert get_args(layers.Method) == tuple(batchnorm.methods()) == tuple(layers.METHODS)


def test_the_choices_are_the_fields_of_a_recipe():
    assert tuple(layers.Choices.__annotations__) == tuple(inspect.signature(layers.Recipe).parameters)


def test_the_backends_are_the_words_of_use():
    sets = [*choice.native.instruction_sets()] if choice.native.built() else []
    assert set(sets) <= set(get_args(choice.Backend))


@pytest.mark.parametrize("correction", get_args(estimators.Correction))
def test_a_correction_is_one_of_its_numbers(correction):
    assert layers.EMA(correction=correction).correction == correction
    with pytest.raises(batchnorm.BatchNormError, match="correction must be 0"):
        layers.EMA(correction=2)


def test_words_are_said_as_one_reads_them():
    for words, said in (
        (typing.Literal["a", "b"], "it must be 'a' or 'b'; it was 'c'"),
        (typing.Literal["a", "d", "e"], "it must be 'a', 'd' or 'e'; it was 'c'"),
        (typing.Literal["a", "d", "e", "f"], "it must be 'a', 'd', 'e' or 'f'; it was 'c'"),
    ):
        word(words)("it", "a")
        with pytest.raises(batchnorm.BatchNormError) as error:
            word(words)("it", "c")
        assert str(error.value) == said


@pytest.mark.parametrize("verb", [verb for verb in map(vars(models).get, models.__all__) if inspect.isfunction(verb)])
def test_no_verb_takes_a_word_as_any_string(verb):
    """A default that is a string is a word, and a word has a `Literal`."""
    hints = typing.get_type_hints(verb)
    for name, parameter in inspect.signature(verb).parameters.items():
        if isinstance(parameter.default, str):
            assert parameter.default in get_args(hints[name]), name
