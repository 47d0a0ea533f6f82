"""Batch normalization whose running statistics can be trusted.

A name is imported when it is first used, so `import batchnorm` adds next to nothing to torch's own time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__: str

if TYPE_CHECKING:
    from batchnorm.diagnosis import diagnose as diagnose
    from batchnorm.diagnosis import inspect_checkpoint as inspect_checkpoint
    from batchnorm.diagnosis import lint as lint
    from batchnorm.diagnosis import watch as watch
    from batchnorm.errors import BatchNormError as BatchNormError
    from batchnorm.errors import OperandError as OperandError
    from batchnorm.kernels import backends as backends
    from batchnorm.layers import EMA as EMA
    from batchnorm.layers import MABN as MABN
    from batchnorm.layers import BatchNorm as BatchNorm
    from batchnorm.layers import BatchNorm1d as BatchNorm1d
    from batchnorm.layers import BatchNorm2d as BatchNorm2d
    from batchnorm.layers import BatchNorm3d as BatchNorm3d
    from batchnorm.layers import CrossIteration as CrossIteration
    from batchnorm.layers import Cumulative as Cumulative
    from batchnorm.layers import Diminishing as Diminishing
    from batchnorm.layers import Ghost as Ghost
    from batchnorm.layers import LazyBatchNorm1d as LazyBatchNorm1d
    from batchnorm.layers import LazyBatchNorm2d as LazyBatchNorm2d
    from batchnorm.layers import LazyBatchNorm3d as LazyBatchNorm3d
    from batchnorm.layers import Masked as Masked
    from batchnorm.layers import Mixture as Mixture
    from batchnorm.layers import Moments as Moments
    from batchnorm.layers import OnlineNorm as OnlineNorm
    from batchnorm.layers import Policy as Policy
    from batchnorm.layers import Pooled as Pooled
    from batchnorm.layers import PowerNorm as PowerNorm
    from batchnorm.layers import Renorm as Renorm
    from batchnorm.layers import Sync as Sync
    from batchnorm.layers import UnifiedNorm as UnifiedNorm
    from batchnorm.layers import Weighted as Weighted
    from batchnorm.layers import Window as Window
    from batchnorm.layers import forward_together as forward_together
    from batchnorm.layers import methods as methods
    from batchnorm.models import accumulate as accumulate
    from batchnorm.models import adapt as adapt
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

# The same once more, for the interpreter; tests/cli/test_package.py holds the two together.
_HOMES = {
    "diagnosis": "diagnose inspect_checkpoint lint watch",
    "errors": "BatchNormError OperandError",
    "kernels": "backends",
    "layers": (
        "BatchNorm BatchNorm1d BatchNorm2d BatchNorm3d CrossIteration Cumulative Diminishing EMA Ghost "
        "LazyBatchNorm1d LazyBatchNorm2d LazyBatchNorm3d MABN Masked Mixture Moments OnlineNorm Policy Pooled "
        "PowerNorm Renorm Sync UnifiedNorm Weighted Window forward_together methods"
    ),
    "models": (
        "accumulate adapt bank convert fold freeze fuse_activations masked pause rank_report recalibrate "
        "sync_statistics to_stock unfreeze update_bn"
    ),
}
_FOLDERS = ("errors", "kernels", "layers", "models", "diagnosis", "interop")
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [*_HOME_OF]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(import_module(f"batchnorm.{_HOME_OF[name]}"), name)
        globals()[name] = value
        return value
    if name in _FOLDERS:
        return import_module(f"batchnorm.{name}")
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("batchnorm")
        except PackageNotFoundError:  # run from source
            return "unknown"
    raise AttributeError(f"module 'batchnorm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF, *_FOLDERS})
