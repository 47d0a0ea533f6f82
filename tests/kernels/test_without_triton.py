"""Where Triton's kernels do not serve: nothing of Triton is imported, and the reason is said."""

import subprocess
import sys

import pytest
import torch

from batchnorm import BatchNormError, kernels
from batchnorm.kernels import triton
from batchnorm.kernels.triton import serving


def test_the_cpu_is_not_theirs_and_triton_is_not_imported():
    program = (
        "import sys, torch, batchnorm; layer = batchnorm.BatchNorm1d(2, method='renorm'); "
        "layer(torch.randn(4, 2)); print('triton' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
    assert not triton.serves(torch.randn(3, 2))


@pytest.mark.parametrize("device", ["cpu", "meta", "mps", "xpu"])
def test_other_devices_are_named(device):
    serving.without.cache_clear()
    assert serving.without(torch.device(device)) == f"Triton's kernels serve CUDA devices, not {device}"


def test_old_cards_and_a_missing_triton_are_named(monkeypatch):
    card = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla P100")
    for found, capability, expected in [
        (False, (9, 0), "Triton is not installed"),
        (True, (6, 1), "Triton's kernels need compute capability 7.0; Tesla P100 has less"),
        (True, (7, 0), None),
    ]:
        serving.without.cache_clear()
        monkeypatch.setattr(serving, "_installed", lambda found=found: found)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, capability=capability: capability)
        assert serving.without(card) == expected
    serving.without.cache_clear()


def test_switched_off_with_everything_else():
    kernels.use("reference")
    assert kernels.backends()["triton"] == "switched off by use('reference')"
    assert serving.declined(torch.zeros(2, 2)) == "Triton's kernels are switched off"
    kernels.use()
    if not torch.cuda.is_available():
        assert kernels.backends()["triton"] == "not in use: torch finds no CUDA device"


def test_the_interpreter_must_be_chosen_before_the_import(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BatchNormError, match="TRITON_INTERPRET must be 1"):
        triton.interpret(True)
