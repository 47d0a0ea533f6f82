"""Batch normalization whose running statistics can be trusted.

Verbs and layers are here, the choices a layer is made of in `batchnorm.layers`. A name is imported when it is first
used, so `import batchnorm` adds next to nothing to torch's own time.
"""

# pyright: reportUnusedImport=false
from __future__ import annotations

from typing import TYPE_CHECKING

__version__: str

# Type checkers read the imports, the interpreter the names below; tests/cli/test_package.py holds the two together.
if TYPE_CHECKING:
    from batchnorm import diagnosis as diagnosis
    from batchnorm import errors as errors
    from batchnorm import interop as interop
    from batchnorm import kernels as kernels
    from batchnorm import layers as layers
    from batchnorm import models as models
    from batchnorm.diagnosis import diagnose as diagnose
    from batchnorm.diagnosis import inspect_checkpoint as inspect_checkpoint
    from batchnorm.diagnosis import lint as lint
    from batchnorm.diagnosis import watch as watch
    from batchnorm.errors import BatchNormError as BatchNormError
    from batchnorm.errors import OperandError as OperandError

    # Older spellings. Without `as` they are no exports: strict checkers refuse them, and pyright says where they are.
    from batchnorm.layers import (
        EMA,
        MABN,
        CrossIteration,
        Cumulative,
        Diminishing,
        Ghost,
        Masked,
        Mixture,
        Moments,
        OnlineNorm,
        Policy,
        Pooled,
        PowerNorm,
        Renorm,
        Sync,
        UnifiedNorm,
        Weighted,
        Window,
    )
    from batchnorm.layers import BatchNorm as BatchNorm
    from batchnorm.layers import BatchNorm1d as BatchNorm1d
    from batchnorm.layers import BatchNorm2d as BatchNorm2d
    from batchnorm.layers import BatchNorm3d as BatchNorm3d
    from batchnorm.layers import LazyBatchNorm1d as LazyBatchNorm1d
    from batchnorm.layers import LazyBatchNorm2d as LazyBatchNorm2d
    from batchnorm.layers import LazyBatchNorm3d as LazyBatchNorm3d
    from batchnorm.layers import forward_together as forward_together
    from batchnorm.layers import methods as methods
    from batchnorm.models import accumulate as accumulate
    from batchnorm.models import adapt as adapt
    from batchnorm.models import backends as backends
    from batchnorm.models import bank as bank
    from batchnorm.models import convert as convert
    from batchnorm.models import fold as fold
    from batchnorm.models import freeze as freeze
    from batchnorm.models import fuse_activations as fuse_activations
    from batchnorm.models import masked as masked
    from batchnorm.models import pause as pause
    from batchnorm.models import rank_report as rank_report
    from batchnorm.models import recalibrate as recalibrate
    from batchnorm.models import sync_statistics as sync_statistics
    from batchnorm.models import to_stock as to_stock
    from batchnorm.models import unfreeze as unfreeze
    from batchnorm.models import update_bn as update_bn
else:
    _NAMES = {
        "diagnosis": "diagnose inspect_checkpoint lint watch",
        "errors": "BatchNormError OperandError",
        "layers": (
            "BatchNorm BatchNorm1d BatchNorm2d BatchNorm3d LazyBatchNorm1d LazyBatchNorm2d LazyBatchNorm3d "
            "forward_together methods"
        ),
        "models": (
            "accumulate adapt backends bank convert fold freeze fuse_activations masked pause rank_report recalibrate "
            "sync_statistics to_stock unfreeze update_bn"
        ),
    }
    _FOLDERS = ("diagnosis", "errors", "interop", "kernels", "layers", "models")
    _IN_LAYERS_NOW = (
        "CrossIteration Cumulative Diminishing EMA Ghost MABN Masked Mixture Moments OnlineNorm Policy Pooled "
        "PowerNorm Renorm Sync UnifiedNorm Weighted Window"
    )
    _HOME_OF = {name: home for home, names in _NAMES.items() for name in names.split()}
    _OLDER = {*_IN_LAYERS_NOW.split()}

    __all__ = [*_HOME_OF]

    def __getattr__(name):
        from importlib import import_module

        if name in _HOME_OF:
            value = getattr(import_module(f"batchnorm.{_HOME_OF[name]}"), name)
            globals()[name] = value
            return value
        if name in _FOLDERS:
            return import_module(f"batchnorm.{name}")
        if name in _OLDER:
            import warnings

            words = f"batchnorm.{name} is deprecated: use batchnorm.layers.{name}"
            warnings.warn(words, DeprecationWarning, stacklevel=2)
            return getattr(import_module("batchnorm.layers"), name)
        if name == "__version__":
            from importlib.metadata import PackageNotFoundError, version

            try:
                return version("batchnorm")
            except PackageNotFoundError:  # run from source
                return "unknown"
        raise AttributeError(f"module 'batchnorm' has no attribute {name!r}")

    def __dir__():
        return sorted({*_HOME_OF, *_FOLDERS, "__version__"})
