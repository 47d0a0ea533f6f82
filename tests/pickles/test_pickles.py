"""Pickles and states that version 0.1.0 wrote load, and give what they gave."""

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

import batchnorm

ARCHIVE = zipfile.ZipFile(Path(__file__).with_name("0.1.0.zip"))
RESULTS = [name for name in ARCHIVE.namelist() if name.startswith("results/")]


def kept(name):
    return pickle.loads(ARCHIVE.read(name))


def in_eval(method, model, x):
    model.eval()
    given = {"masked": {"lengths": torch.tensor([5, 4, 3, 2])}}
    given["weighted"] = {"weights": torch.tensor([1.0, 2.0, 0.5, 1.0])}
    with torch.no_grad():
        if method not in given:
            return model(x)
        with batchnorm.masked(model, **given[method]):
            return model(x)


def test_the_archive_has_every_method_of_that_version():
    methods = {name.removeprefix("models/") for name in ARCHIVE.namelist() if name.startswith("models/")}
    assert len(methods) == 19
    assert methods <= set(batchnorm.methods())


@pytest.mark.parametrize("method", batchnorm.methods())
def test_a_model_gives_what_it_gave(method):
    model, x, y = kept(f"models/{method}")
    torch.testing.assert_close(in_eval(method, model, x), y, rtol=1e-12, atol=1e-12)
    assert model.load_state_dict(kept(f"states/{method}"), strict=True) == ([], [])


@pytest.mark.parametrize("method", batchnorm.methods())
def test_a_state_fits_a_new_model(method):
    _, x, y = kept(f"models/{method}")
    model = batchnorm.convert(nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3)).double(), method)
    model.load_state_dict(kept(f"states/{method}"), strict=True)
    torch.testing.assert_close(in_eval(method, model, x), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_loads_and_can_be_kept_again(name):
    value = kept(name)
    assert type(pickle.loads(pickle.dumps(value))) is type(value)


def test_functions_are_those_of_today():
    names = [(partial.func.__name__, partial.func) for partial in kept("results/functions")]
    homes = (batchnorm, batchnorm.models, batchnorm.kernels, batchnorm.interop)
    for name, function in names:
        assert any(getattr(home, name, None) is function for home in homes), name


def test_choices_are_those_of_today():
    for recipe, today in zip(kept("results/choices"), batchnorm.layers.METHODS.values(), strict=True):
        assert recipe == today


def test_frozen_layers_stay_frozen():
    model = kept("results/frozen").train()
    model(torch.randn(8, 3))
    assert [int(layer.num_batches_tracked) for layer in model] == [0, 0]
