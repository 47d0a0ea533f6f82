"""A script outside the package as a module, for the tests of what it makes."""

import importlib.util
from pathlib import Path


def load(path: Path):
    """The module of a file that no import finds."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
