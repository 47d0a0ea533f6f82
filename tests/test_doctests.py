"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import pkgutil

import pytest

import batchnorm

MODULES = [m.name for m in pkgutil.walk_packages(batchnorm.__path__, "batchnorm.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
