"""The benchmark for a card, run without one: dry, and with what is CUDA's alone replaced."""

import contextlib
import importlib.util
import json
from pathlib import Path
from unittest import mock

import pytest
import torch

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="the benchmark itself runs there"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture
def on_cuda():
    path = Path(__file__).parents[3] / "benchmarks" / "on_cuda.py"
    spec = importlib.util.spec_from_file_location("on_cuda", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("dry", [True, False])
def test_every_line_runs_and_everything_asked_for_is_said(dry, on_cuda, tmp_path, capsys):
    rig = on_cuda.Rig("cpu", [(2, 2, 1)], (2,), 1, 2, dry, 32)
    with contextlib.ExitStack() as stack:
        if not dry:
            event = mock.Mock(elapsed_time=mock.Mock(return_value=2.0))
            kernel = mock.Mock(device_type=torch.autograd.DeviceType.CUDA, device_time_total=3.0)
            profile = mock.MagicMock()
            profile.return_value.__enter__.return_value.events.return_value = [kernel, kernel]
            for name in ("Event", "Stream", "CUDAGraph", "graph", "stream", "current_stream", "synchronize"):
                stack.enter_context(mock.patch.object(torch.cuda, name, mock.MagicMock(return_value=mock.MagicMock())))
            stack.enter_context(mock.patch.object(torch.cuda, "Event", mock.Mock(return_value=event)))
            stack.enter_context(mock.patch.object(torch.cuda, "memory_allocated", mock.Mock(return_value=512)))
            stack.enter_context(mock.patch.object(torch.profiler, "profile", profile))
            stack.enter_context(mock.patch.object(torch, "compile", lambda layer, backend: layer))
            small = on_cuda.resnet((1, 1), 4)
            stack.enter_context(mock.patch.object(on_cuda, "resnet", return_value=small))
        on_cuda.measure(rig, "no card", tmp_path / "cuda.json")
    found = json.loads((tmp_path / "cuda.json").read_text())
    assert "Error" not in json.dumps(found)
    said = {row["what"]: row["times"] for row in found["summary"]}
    assert all(row["what"] in capsys.readouterr().out for row in found["summary"][:1])
    assert len(found["layers"]) == 6
    assert {row["method"] for row in found["methods"]} >= {"batchnorm", "renorm", "window", "ghost", "mabn", "unified"}
    if not dry:
        assert said["torch add relu over add relu: 2, float32, channels_last"] == 1.0
        assert said["renorm over plain, kernel_ms (2.0 launches)"] == 1.0
        assert said["ResNet-50 stock over fused"] == 1.0
        assert said["bytes held after all steps over those after a tenth"] == 1.0


def test_what_fails_is_said_in_its_place(on_cuda):
    def fails():
        raise ValueError("as told")

    rig = on_cuda.Rig("cpu", [], (), 1, 1, True)
    found = on_cuda.timed({"good": lambda: None, "bad": fails, "worse": "not made"}, rig)
    assert found.pop("good") >= 0
    assert found == {"bad": "ValueError: as told", "worse": "not made"}
    assert on_cuda.total([{"c": 1, "size": 1, "ms": "bad"}], {(1, 1): 2}, lambda row: row["ms"] + 1) is None
