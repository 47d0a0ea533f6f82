"""The package as a whole: its module form, its environment report, what an import does not load."""

import ast
import importlib
import importlib.metadata
import json
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import pytest
import torch

import batchnorm
from batchnorm.environment import environment

PACKAGES = ["batchnorm", *(m.name for m in pkgutil.walk_packages(batchnorm.__path__, "batchnorm.") if m.ispkg)]
APIS = [f"batchnorm.{name}" for name in ("diagnosis", "files", "interop", "kernels", "layers", "models")]
OLDER_SPELLINGS = [
    "CrossIteration",
    "Cumulative",
    "Diminishing",
    "EMA",
    "Ghost",
    "MABN",
    "Masked",
    "Mixture",
    "Moments",
    "OnlineNorm",
    "Policy",
    "Pooled",
    "PowerNorm",
    "Renorm",
    "Sync",
    "UnifiedNorm",
    "Weighted",
    "Window",
]
OLDER_MODULES = {
    "batchnorm.diagnosis.model.diagnose": "diagnose",
    "batchnorm.diagnosis.run.watch": "watch",
    "batchnorm.diagnosis.source.lint": "lint",
    "batchnorm.interop.translate": "translate",
    "batchnorm.kernels.verify": "verify",
    "batchnorm.models.recalibrate": "recalibrate",
    "batchnorm.models.union": "union",
}


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=True).stdout


def test_python_dash_m_is_the_command_line():
    assert "recalibrate" in run("-m", "batchnorm", "--help")


def test_the_environment_names_what_a_report_needs():
    told = json.loads(run("-m", "batchnorm", "env", "--json"))
    assert told["torch"] == torch.__version__.split("+")[0] or told["torch"] == torch.__version__
    assert told["native kernels"] == environment()["native kernels"]
    assert told["threads"].isdecimal()


@pytest.mark.slow
def test_the_version_is_the_distribution_s():
    assert run("-m", "batchnorm", "--version").split() == ["batchnorm", batchnorm.__version__]
    assert batchnorm.__version__ == importlib.metadata.version("batchnorm")


def test_an_import_loads_no_optional_library_and_no_command_line():
    everything = "import batchnorm, sys; [getattr(batchnorm, name) for name in batchnorm.__all__]; print(*sys.modules)"
    loaded = run("-c", everything).split()
    optional = {
        "rich",
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


def test_an_import_loads_nothing_but_itself_and_a_name_what_it_needs():
    loaded = run("-c", "import batchnorm, sys; print(*sys.modules)").split()
    assert [name for name in loaded if name.split(".")[0] in ("batchnorm", "torch")] == ["batchnorm"]
    loaded = run("-c", "import batchnorm, sys; batchnorm.BatchNorm2d; print(*sys.modules)").split()
    assert "batchnorm.layers" in loaded
    assert not {"batchnorm.models", "batchnorm.diagnosis"} & set(loaded)


def test_what_type_checkers_read_is_what_the_interpreter_finds():
    tree = ast.parse(Path(batchnorm.__file__).read_text(encoding="utf-8"))
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and str(n.module).startswith("batchnorm")]
    exported = {(alias.name, str(n.module)) for n in imports for alias in n.names if alias.asname}
    folders = {name for name, home in exported if home == "batchnorm"}
    assert {name for name, _ in exported} - folders == set(batchnorm.__all__)
    for name, home in exported:
        assert getattr(batchnorm, name) is getattr(importlib.import_module(home), name)
    with pytest.raises(AttributeError, match="module 'batchnorm' has no attribute 'BatchNorm4d'"):
        _ = batchnorm.BatchNorm4d
    star: dict[str, object] = {}
    exec("from batchnorm import *", star)
    assert set(star) - {"__builtins__"} == set(batchnorm.__all__)
    assert {alias.name for n in imports for alias in n.names if not alias.asname} == set(OLDER_SPELLINGS)


def test_the_package_shows_its_public_names_only():
    folders = {"diagnosis", "errors", "interop", "kernels", "layers", "models"}
    assert set(dir(batchnorm)) == {*batchnorm.__all__, *folders, "__version__"}
    assert len(batchnorm.__all__) == 31
    told = run("-c", "import batchnorm; a = dir(batchnorm); import batchnorm.cli; print(a == dir(batchnorm))")
    assert told.strip() == "True"


@pytest.mark.parametrize("name", OLDER_SPELLINGS)
def test_an_older_spelling_works_and_names_the_new_one(name):
    words = f"batchnorm.{name} is deprecated: use batchnorm.layers.{name}"
    with pytest.warns(DeprecationWarning, match=words) as told:
        assert getattr(batchnorm, name) is getattr(batchnorm.layers, name)
    assert told[0].filename == __file__
    assert name not in dir(batchnorm)
    with pytest.warns(DeprecationWarning, match=words):
        exec(f"from batchnorm import {name}")


@pytest.mark.parametrize("name", PACKAGES)
def test_no_public_name_is_that_of_a_module_beside_it(name):
    """Else checkers take the one for the other, and importing the module hides the function."""
    package = importlib.import_module(name)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert set(getattr(package, "__all__", ())) & modules == set()
    functions = {key for key, value in vars(package).items() if callable(value)}
    assert functions & modules == set()


@pytest.mark.parametrize("name", APIS)
def test_a_package_says_its_api(name):
    package = importlib.import_module(name)
    assert len(package.__all__) == len(set(package.__all__))
    star: dict[str, object] = {}
    exec(f"from {name} import *", star)
    assert set(star) - {"__builtins__"} == set(package.__all__)
    values = [(key, getattr(package, key)) for key in package.__all__]
    assert [key for key, value in values if isinstance(value, type | FunctionType) and not value.__doc__] == []


@pytest.mark.slow
def test_modules_of_older_versions_are_found_and_hide_no_function():
    lines = [f"import {old}; print({old}.__name__)" for old in OLDER_MODULES]
    lines += [f"import sys; print(sys.modules['{old}'].{verb}.__name__)" for old, verb in OLDER_MODULES.items()]
    assert run("-c", "\n".join(lines)).split() == [*OLDER_MODULES.values()] * 2


@pytest.mark.slow
def test_shells_complete_the_commands():
    assert "--install-completion" in run("-m", "batchnorm", "--help")
