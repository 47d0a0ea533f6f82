"""torch's distributed tests of SyncBatchNorm, over gloo on the CPU, which stock torch refuses.

The tests are in the installed torch (`torch.testing._internal.distributed.distributed_test`). They ask for one
GPU a rank; here each GPU is the CPU. Each rank is a process that imports this file.
"""

import functools
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.testing._internal import common_distributed

from tests.torch_suite.substitute import rename


def _on_the_cpu(make: Any) -> Any:
    @functools.wraps(make)
    def made(*args: Any, **kwargs: Any) -> Any:
        return make(*args, **{**kwargs, "device": "cpu"})

    return made


def _without_devices(make: Any) -> Any:
    @functools.wraps(make)
    def made(
        self: Any, module: Any, device_ids: Any = None, output_device: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        make(self, module, None, None, *args, **kwargs)

    return made


_DEVICE = torch.device
rename()
torch.Tensor.cuda = nn.Module.cuda = lambda self, *_, **__: self  # pyright: ignore[reportAttributeAccessIssue]
torch.cuda.set_device = lambda *_: None
torch.cuda.current_device = lambda: 0
torch.randn = _on_the_cpu(torch.randn)
nn.parallel.DistributedDataParallel.__init__ = _without_devices(nn.parallel.DistributedDataParallel.__init__)
common_distributed.skip_if_no_gpu = lambda test: test
common_distributed.skip_if_lt_x_gpu = lambda _, **__: lambda test: test

from torch.testing._internal.distributed.distributed_test import DistributedTest, TestDistBackend  # noqa: E402


class _AnyDevice(type):
    def __instancecheck__(cls, thing: Any) -> bool:
        return isinstance(thing, _DEVICE)


class _Device(metaclass=_AnyDevice):
    """torch.device, where a number is the CPU too."""

    def __new__(cls, *names: Any) -> Any:
        return _DEVICE("cpu") if isinstance(names[0], int) else _DEVICE(*names)


class TestSync(TestDistBackend, DistributedTest._DistTestBase):  # pyright: ignore
    """torch's tests, each rank a process; `run_sync` chooses those about synchronised batch norm."""

    def setUp(self) -> None:
        """Start the ranks: forked, since a fresh process would import torch again for every test."""
        super().setUp()
        self._start_processes(torch.multiprocessing.get_context("fork").Process)

    def test_DistributedDataParallel_SyncBatchNorm_half(self) -> None:
        """It names the device by its number alone."""
        with mock.patch.object(torch, "device", _Device):
            super().test_DistributedDataParallel_SyncBatchNorm_half()


del TestDistBackend, DistributedTest
