"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import importlib.util
import pkgutil

import pytest

import batchnorm

KERNELS = "batchnorm.kernels.triton."  # their modules need Triton; `make test-triton` runs them
MODULES = [
    m.name
    for m in pkgutil.walk_packages(batchnorm.__path__, "batchnorm.")
    if importlib.util.find_spec("triton") or not m.name.startswith(KERNELS)
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
