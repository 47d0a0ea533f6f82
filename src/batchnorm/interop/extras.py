"""Optional packages: imported when a format or a trainer needs them, and asked for by name when they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from batchnorm.errors import BatchNormError


def needs(module: str, who: str = "this format") -> Any:
    """The module, imported now.

    Raises:
        BatchNormError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise BatchNormError(f"{who} needs {package}; install it with: pip install {package}") from error
