"""What is said where a library is not installed."""

import importlib
import sys

import pytest
from torch import nn

from batchnorm import BatchNormError


@pytest.mark.parametrize(
    ("adapter", "library", "make"),
    [
        ("lightning", "lightning", lambda m: m.Watch()),
        ("lightning", "lightning", lambda m: m.Recalibrate()),
        ("lightning", "lightning", lambda m: m.Freeze()),
        ("transformers", "transformers", lambda m: m.Recalibrate()),
        ("timm", "timm", lambda m: m.convert(nn.Sequential(nn.BatchNorm2d(2)))),
    ],
)
def test_one_sentence(adapter, library, make, monkeypatch):
    from batchnorm.interop.trainers import lazy, timm

    module = importlib.import_module(f"batchnorm.interop.trainers.{adapter}")
    for name in [name for name in sys.modules if name.partition(".")[0] in (library, "pytorch_lightning")]:
        monkeypatch.delitem(sys.modules, name)
    for name in (library, "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    lazy._joined.cache_clear()
    timm._norm_act.cache_clear()
    with pytest.raises(BatchNormError, match=f"needs {library}; install it with: pip install {library}$"):
        make(module)


def test_importing_an_adapter_imports_no_library():
    import subprocess

    names = "accelerate averages fields lightning loaders schedule_free timm torchmetrics transformers ultralytics"
    code = f"""
import importlib, sys
for name in {names!r}.split():
    importlib.import_module("batchnorm.interop.trainers." + name)
others = {{"accelerate", "lightning", "pytorch_lightning", "schedulefree", "timm", "torchmetrics", "transformers",
           "ultralytics", "torchvision"}}
assert not others & set(sys.modules), others & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
