"""Through which files of the package a training step passes, counted by a tracer: few, and none of them long."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import batchnorm
from batchnorm import BatchNorm2d
from batchnorm.kernels import native
from batchnorm.layers import Renorm, Sync

pytestmark = pytest.mark.skipif(not native.built(), reason="the native kernels are not built")

PACKAGE = str(Path(batchnorm.__file__).parent)
LONGEST = 250


def files_of(step: Callable[[], object]) -> set[str]:
    """The files of the package whose functions run in a step, those of its backward included."""
    found: set[str] = set()

    def called(frame, event, argument):
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(PACKAGE):
            found.add(name[len(PACKAGE) + 1 :])

    before = sys.getprofile()
    sys.setprofile(called)
    threading.setprofile(called)
    try:
        step()
    finally:
        sys.setprofile(before)
        threading.setprofile(None)  # pyright: ignore[reportArgumentType]
    return found


def second_step(layer, **given) -> set[str]:
    """The files of a layer's second step, forward and backward."""
    x = torch.randn(8, 32, 8, 8, requires_grad=True)

    def step():
        layer(x, **given).square().sum().backward()

    step()
    return files_of(step)


def lengths(files):
    return {name: len((Path(PACKAGE) / name).read_text().splitlines()) for name in files}


def short(files):
    return max(lengths(files).values()) <= LONGEST


def test_the_tracer_sees_forward_and_backward():
    found = second_step(BatchNorm2d(32))
    assert {"layers/module.py", "layers/step.py", "kernels/calls.py"} <= found
    with batchnorm.pause(torch.nn.Sequential(layer := BatchNorm2d(32, method="online"))):
        assert len(second_step(layer)) > len(found)


def test_a_plain_step_passes_five_files():
    found = second_step(BatchNorm2d(32))
    assert len(found) <= 5, found
    assert short(found), lengths(found)


def test_renorm_with_a_schedule_and_a_mask_passes_eight():
    layer = BatchNorm2d(32, method="renorm", coupling=Renorm(schedule="paper"))
    found = second_step(layer, mask=torch.rand(8, 8, 8) > 0.1)
    assert len(found) <= 8, found
    assert short(found), lengths(found)


def test_a_shared_step_passes_eight(tmp_path, monkeypatch):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        # One process that sends its messages all the same, as each of several does.
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 2)
        layer = BatchNorm2d(32, extent=Sync())
        found = second_step(layer)
        assert layer.__dict__["_partners"]._calls == {"forward": 2, "backward": 2, "entry": 0}
    finally:
        monkeypatch.undo()
        dist.destroy_process_group()
    assert {"layers/processes/ranks.py", "layers/choices/extents.py"} <= found
    assert len(found) <= 8, found
    assert short(found), lengths(found)
