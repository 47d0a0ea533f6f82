"""The package as a whole: its module form, its environment report, what an import does not load."""

import json
import subprocess
import sys

import torch

from batchnorm.environment import environment


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=True).stdout


def test_python_dash_m_is_the_command_line():
    assert "recalibrate" in run("-m", "batchnorm", "--help")


def test_the_environment_names_what_a_report_needs():
    told = json.loads(run("-m", "batchnorm", "env", "--json"))
    assert told["torch"] == torch.__version__.split("+")[0] or told["torch"] == torch.__version__
    assert told["native kernels"] == environment()["native kernels"]
    assert told["threads"].isdecimal()


def test_an_import_loads_no_optional_library_and_no_command_line():
    loaded = run("-c", "import batchnorm, sys; print(*sys.modules)").split()
    optional = {
        "typer",
        "click",
        "safetensors",
        "onnx",
        "keras",
        "jax",
        "h5py",
        "lightning",
        "transformers",
        "timm",
        "altair",
    }
    assert not optional & set(loaded)
    assert not {name for name in loaded if name.startswith(("batchnorm.interop", "batchnorm.cli", "batchnorm.demo"))}


def test_shells_complete_the_commands():
    assert "--install-completion" in run("-m", "batchnorm", "--help")
