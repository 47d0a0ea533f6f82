"""Reading and atomically writing checkpoints: nothing from a file is executed, no file is half written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from batchnorm.errors import BatchNormError

_NESTED = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True)
class Archive:
    """A checkpoint file as it was read: all of it, and where in it the state dict lies."""

    content: Any
    keys: tuple[str, ...] = ()
    metadata: dict[str, str] | None = None
    safetensors: bool = False

    @property
    def state(self) -> dict[str, Tensor]:
        """The tensors by name."""
        found = self.content
        for key in self.keys:
            found = found[key]
        return found

    def replaced(self, tensors: dict[str, Tensor]) -> Archive:
        """The same file with other values for some tensors, in the dtypes it has; names it lacks are added."""
        old = self.state
        new = {name: value.detach().cpu() for name, value in tensors.items()}
        new = {name: value.to(old[name].dtype) if name in old else value for name, value in new.items()}
        # Copies of the containers on the way, of their own types (an OrderedDict may carry version metadata).
        content = copy(self.content)
        inner = content
        for key in self.keys:
            inner[key] = copy(inner[key])
            inner = inner[key]
        inner.update(new)
        return replace(self, content=content)


def load_archive(path: str | Path) -> Archive:
    """A `.pt`, `.pth`, `.bin` or `.safetensors` file, as data only.

    Raises:
        BatchNormError: the file is missing, is not a checkpoint, or holds no tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise BatchNormError(f"weights must be an existing file; there is none at {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return Archive(tensors, (), file.metadata(), True)
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise BatchNormError(f"reading {path.name} needs: pip install 'batchnorm[safetensors]'") from error
    except Exception as error:
        raise BatchNormError(f"weights must be a checkpoint of tensors; {path.name} {_unread(path, error)}") from error
    keys: tuple[str, ...] = ()
    found = loaded
    for key in _NESTED:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found, keys = found[key], (*keys, key)
    if not isinstance(found, dict) or not any(isinstance(v, Tensor) for v in found.values()):
        raise BatchNormError(f"weights must hold tensors by name; {path.name} holds a {type(found).__name__}")
    return Archive(loaded, keys)


def _unread(path: Path, error: Exception) -> str:
    """Why torch or safetensors could not read a file, in words."""
    if not path.stat().st_size:
        return "is empty"
    with path.open("rb") as file:
        start = file.read(2)
    # A zip archive, or a pickle as torch wrote it before.
    if path.suffix != ".safetensors" and start != b"PK" and start[:1] != b"\x80":
        return "is no torch.save file"
    if isinstance(error, UnpicklingError) and "weights_only" in str(error).lower():
        return "holds objects, which are not loaded: save model.state_dict() in place of the model"
    return f"is cut off or damaged ({type(error).__name__})"


def changed(new: dict[str, Tensor], old: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state dict whose values are not those of another, compared in the other's dtypes."""
    return {
        name: value
        for name, value in new.items()
        if isinstance(value, Tensor)
        and (name not in old or not torch.equal(value.cpu().to(old[name].dtype), old[name].cpu()))
    }


def load_state(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a `.pt`, `.pth`, `.bin` or `.safetensors` file, as data only.

    Raises:
        BatchNormError: the file is missing, is not a checkpoint, or holds no tensors by name.
    """
    return load_archive(path).state


def save_archive(archive: Archive, path: str | Path) -> None:
    """Write all of a checkpoint; a `.safetensors` file takes the tensors and the metadata, if there is any."""
    if Path(path).suffix == ".safetensors":
        save_state(archive.state, path, archive.metadata)
    elif archive.safetensors:
        save_state(archive.state, path)
    else:
        write_atomically(path, lambda temporary: torch.save(archive.content, temporary))


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
    path = Path(path)
    if not path.parent.is_dir():
        raise BatchNormError(f"{name} must lie in an existing folder; there is none at {path.parent}")
    if path.is_dir():
        raise BatchNormError(f"{name} must be a file; {path} is a folder")
    if path.suffix == ".safetensors" and find_spec("safetensors") is None:
        raise BatchNormError(f"writing {path.name} needs: pip install 'batchnorm[safetensors]'")


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> None:
    """Call write on a temporary file in path's folder, then rename it; on an error nothing is left behind."""
    path = Path(path)
    check_writable(path)
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
