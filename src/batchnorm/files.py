"""Reading and atomically writing checkpoints: nothing from a file is executed, no file is half written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from batchnorm.errors import BatchNormError


def load_state(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a `.pt`, `.pth`, `.bin` or `.safetensors` file, as data only.

    Raises:
        BatchNormError: the file is missing, is not a checkpoint, or holds no tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise BatchNormError(f"weights must be an existing file; there is none at {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise BatchNormError(f"reading {path.name} needs: pip install 'batchnorm[safetensors]'") from error
    except Exception as error:
        raise BatchNormError(
            f"weights must be a checkpoint of tensors; {path.name} could not be read as one ({type(error).__name__})"
        ) from error
    if isinstance(loaded, dict):
        for key in ("state_dict", "model_state_dict", "model"):
            if isinstance(loaded.get(key), dict):
                loaded = loaded[key]
    if not isinstance(loaded, dict) or not any(isinstance(v, Tensor) for v in loaded.values()):
        raise BatchNormError(f"weights must hold tensors by name; {path.name} holds a {type(loaded).__name__}")
    return loaded


def save_state(state: dict[str, Tensor], path: str | Path) -> None:
    """Write a state dict beside its place and rename it there, so a reader sees the old file or the new one."""
    path = Path(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
        write_atomically(path, lambda temporary: save_file(contiguous, temporary))
    else:
        write_atomically(path, lambda temporary: torch.save(state, temporary))


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> None:
    """Call write on a temporary file in path's folder, then rename it; on an error nothing is left behind."""
    path = Path(path)
    if not path.parent.is_dir():
        raise BatchNormError(f"path must lie in an existing folder; there is none at {path.parent}")
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        write(Path(name))
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
