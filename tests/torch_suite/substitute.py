"""Put this package's classes where PyTorch's tests look for torch's.

Only the names that a test writes are changed (`nn.BatchNorm2d`), as in a program that imports this package's
layers. torch's own tools are imported before, so their tables still hold torch's classes, as they do for a user.
"""

import importlib
from typing import Any

import torch
from torch import nn

import batchnorm

NAMES = tuple(f"{lazy}BatchNorm{rank}d" for lazy in ("", "Lazy") for rank in (1, 2, 3))

# Their tables are made when they are imported.
_TOOLS = (
    "torch.ao.quantization.quantize_fx", "torch.ao.nn.intrinsic.qat", "torch.ao.quantization.fuser_method_mappings",
    "torch.ao.ns._numeric_suite_fx", "torch.fx.experimental.optimization", "torch.nn.utils.fusion",
    "torch.testing._internal.common_modules",
)  # fmt: skip


class SyncBatchNorm(batchnorm.BatchNorm):
    """torch's constructor and `convert_sync_batchnorm` for `method="sync"`."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        extent = batchnorm.layers.Sync(group=process_group)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, extent=extent)

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """What a program that uses this package calls instead, and the class name that tests ask for."""
        batchnorm.convert(module, extent=batchnorm.layers.Sync(group=process_group))
        for layer in module.modules():
            if type(layer) in (batchnorm.BatchNorm1d, batchnorm.BatchNorm2d, batchnorm.BatchNorm3d):
                layer.__class__ = cls
        return module


def rename() -> dict[type, type]:
    """Change the names in torch.nn; what became of which class."""
    replaced: dict[type, type] = {getattr(nn, name): getattr(batchnorm, name) for name in NAMES}
    replaced[nn.SyncBatchNorm] = SyncBatchNorm
    for theirs, ours in replaced.items():
        # DistributedDataParallel asks torch.nn.modules for the class that it refuses on the CPU.
        homes = (nn,) if ours is SyncBatchNorm else (nn, nn.modules, nn.modules.batchnorm)
        for module in homes:
            setattr(module, theirs.__name__, ours)
    return replaced


def substitute() -> None:
    """Change the names in torch.nn, and the entries of torch's module database."""
    for tool in _TOOLS:
        importlib.import_module(tool)
    replaced = rename()
    # test ids keep torch's names, so that both runs have the same.
    database: Any = importlib.import_module("torch.testing._internal.common_modules")
    for theirs, ours in replaced.items():
        if theirs in database.MODULE_CLASS_NAMES:
            database.MODULE_CLASS_NAMES[ours] = database.MODULE_CLASS_NAMES[theirs]
    for info in database.module_db:
        info.module_cls = replaced.get(info.module_cls, info.module_cls)


def stand_in() -> None:
    """Names that the tests of torch 2.6 import and torch 2.13 has dropped; both runs meet the same ones."""
    nn_helpers: Any = importlib.import_module("torch.testing._internal.common_nn")
    dropped: dict[tuple[str, str], Any] = {
        ("torch.testing._internal.common_nn", "new_module_tests"): getattr(nn_helpers, "get_new_module_tests", list)(),
        ("torch.testing._internal.common_cuda", "tf32_is_not_fp32"): lambda: False,
        ("torch.testing._internal.common_mkldnn", "bf32_on_and_off"): lambda *_: lambda test: test,
        ("torch.export", "export_for_training"): torch.export.export,
    }
    for (module, name), value in dropped.items():
        home = importlib.import_module(module)
        if not hasattr(home, name):
            setattr(home, name, value)
