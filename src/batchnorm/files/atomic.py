"""Writing files: beside their place, then renamed there, so that a reader sees the old file or the new one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from batchnorm.arguments import a_path
from batchnorm.errors import BatchNormError


def save_state(state: dict[str, Tensor], path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write a state dict beside its place and rename it there, so a reader sees the old file or the new one."""
    path = Path(path)
    if path.suffix == ".safetensors":
        write_atomically(path, lambda temporary: _save_safetensors(state, temporary, metadata))
    else:
        write_atomically(path, lambda temporary: torch.save(state, temporary))


def _save_safetensors(state: dict[str, Tensor], path: Path, metadata: dict[str, str] | None) -> None:
    from safetensors.torch import save_file

    # Copies, since tied weights share memory and the format does not.
    apart = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    save_file(apart, path, metadata)


def check_writable(path: str | Path, name: str = "path") -> None:
    """Whether a file can be written here, before the work that it is to hold is done.

    Raises:
        BatchNormError: the folder does not exist, or the format needs a package that is not installed.
    """
    a_path(name, path)
    path = Path(path)
    if not path.parent.is_dir():
        raise BatchNormError(f"{name} must lie in an existing folder; there is none at {path.parent}")
    if path.is_dir():
        raise BatchNormError(f"{name} must be a file; {path} is a folder")
    if not os.access(path.parent, os.W_OK):
        raise BatchNormError(f"{name} must lie in a folder that can be written to; {path.parent} cannot")
    if path.suffix == ".safetensors" and find_spec("safetensors") is None:
        raise BatchNormError(f"writing {path.name} needs: pip install 'batchnorm[safetensors]'")


def check_readable(path: str | Path, name: str = "path", what: str = "file") -> Path:
    """The path of a file that is there and may be read.

    Raises:
        BatchNormError: nothing there, a folder, no permission, a text that is no path.
    """
    a_path(name, path)
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "none"
        raise BatchNormError(f"{name} must be an existing {what}; there is {found} at {path}")
    if not os.access(path, os.R_OK):
        raise BatchNormError(f"{name} must be a {what} that can be read; {path} cannot: no permission")
    return path


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> None:
    """Call write on a temporary file in path's folder, then rename it; on an error nothing is left behind."""
    path = Path(path)
    check_writable(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise BatchNormError(f"path must be one that can be written; {path} cannot: {error.strerror}") from error
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
