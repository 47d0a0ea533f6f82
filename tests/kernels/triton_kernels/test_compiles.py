"""The kernels compile to machine code for cards that are not here: the interpreter knows no types and registers."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("architecture", ["80", "90"])
def test_each_kind_of_each_argument_compiles(architecture, tmp_path):
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
        "BATCHNORM_TEST_DEVICE": "",
    }
    command = [sys.executable, "-m", "tests.kernels.triton_kernels.compiling", architecture]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200)
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"specialisations of 9 kernels compiled for sm_{architecture}" in result.stdout
