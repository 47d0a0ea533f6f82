"""A checkpoint file in memory: which of its state dicts is meant, under which names, and all else that is in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from batchnorm.errors import BatchNormError
from batchnorm.files import states, torch_file
from batchnorm.files.atomic import check_readable, save_state, write_atomically
from batchnorm.files.entry import mapped

NARROW = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Archive:
    """A checkpoint file as it was read: all of it, and where in it the state dict lies.

    names says what a tensor is called in the file where that differs from the model's name for it;
    `lost` the keys of objects in the file, which were not loaded.
    """

    content: Any
    keys: tuple[Any, ...] = ()
    metadata: dict[str, str] | None = None
    safetensors: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    lost: tuple[str, ...] = ()

    @property
    def stored(self) -> dict[str, Tensor]:
        """The tensors by their names in the file."""
        found = self.content
        for key in self.keys:
            found = found[key]
        return found

    @property
    def state(self) -> dict[str, Tensor]:
        """The tensors by the model's names."""
        return {name: self.stored[held] for name, held in self.names.items()} if self.names else self.stored

    def state_names(self) -> Iterable[str]:
        """What the tensors of the state are called in the file."""
        return self.names.values() if self.names else self.stored

    def left_out_of(self, path: Path) -> list[str]:
        """The keys of what a file written from it does not have: objects, and in `.safetensors` all but the state."""
        alone = path.suffix == ".safetensors" and self.keys and isinstance(self.content, Mapping)
        beside = [str(key) for key in self.content if key != self.keys[0]] if alone else []
        return [key or "the object itself" for key in dict.fromkeys([*self.lost, *beside])]

    def fitted(self, wanted: Iterable[str], what: str) -> Archive:
        """The same file, its tensors under the names that a model wants, without the prefix of a wrapper."""
        names = states.fitting(self.state, list(wanted), what)
        return replace(self, names={name: self.names.get(of, of) for name, of in names.items()}) if names else self

    def replaced(self, tensors: dict[str, Tensor]) -> Archive:
        """The same file with other values for some tensors, in the dtypes it has; names it lacks are added.

        Running statistics are never written narrower than float32: float16 ends at 65504.
        """
        old = self.stored
        narrow = {held for held in self.state_names() if _narrow_statistic(held, old[held])}
        new = {held: old[held].float() for held in narrow}
        for name, value in tensors.items():
            held = self.names.get(name, name)
            dtype = torch.float32 if held in narrow else old[held].dtype if held in old else value.dtype
            new[held] = value.detach().cpu().to(dtype)
        return replace(self, content=_with(self.content, self.keys, new))


def _with(content: Any, keys: tuple[Any, ...], new: dict[str, Tensor]) -> Any:
    """Copies of the containers on the way, of their own types (an OrderedDict may carry version metadata)."""
    if not keys:
        changed = copy(content)
        changed.update(new)
        return changed
    inner = _with(content[keys[0]], keys[1:], new)
    if isinstance(content, tuple):
        return (*content[: keys[0]], inner, *content[keys[0] + 1 :])
    changed = copy(content)
    changed[keys[0]] = inner
    return changed


def _narrow_statistic(name: str, value: Any) -> bool:
    return name.rpartition(".")[2] in states.STATISTICS and value.dtype in NARROW


def load_archive(path: str | Path, key: str | None = None, name: str = "weights") -> Archive:
    """A `.pt`, `.pth`, `.bin` or `.safetensors` file, as data only.

    Args:
        path: a state dict, a training checkpoint, or a whole pickled model, of which the tensors are read.
        key: where the state dict lies, such as `ema` or `state_dict.model`; needed where there are several.
        name: what the caller calls the path.

    Raises:
        BatchNormError: the file is missing, is not a checkpoint, holds no tensors by name, or several states.
    """
    path = check_readable(path, name)
    metadata, safetensors, lost = None, path.suffix == ".safetensors", []
    try:
        if safetensors:
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                content: Any = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata()
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise BatchNormError(f"reading {path.name} needs: pip install 'batchnorm[safetensors]'") from error
    except Exception as error:
        foreign = isinstance(error, UnpicklingError) and "weights_only" in str(error).lower()
        reason = _unread(path)
        if reason is not None or not foreign:
            reason = reason or f"is cut off or damaged ({type(error).__name__})"
            raise BatchNormError(f"{name} must be a checkpoint of tensors; {path.name} {reason}") from error
        content, lost = _data_of(path, name)
    keys, prefix = states.choose(states.in_tree(content), key, path.name, type(content).__name__)
    archive = Archive(content, keys, metadata, safetensors, lost=tuple(lost))
    if prefix:
        archive = replace(archive, names={n.removeprefix(prefix): n for n in archive.stored if n.startswith(prefix)})
    return archive


def _data_of(path: Path, of: str) -> tuple[Any, list[str]]:
    """What a file with objects in it holds as data, with state dicts for its pickled models; and what it lost."""
    with mapped(path) as data:
        try:
            content, lost = torch_file.without_objects(path, data)
            content = content if isinstance(content, dict) else {}
            for keys, held in states.entries(path, data).items():
                if ".".join(keys) not in lost:
                    continue
                inner = content
                for key in keys:
                    inner = inner.setdefault(key, {})
                inner.update({name: entry.tensor(data) for name, entry in held.items()})
        except (ValueError, *states.UNREADABLE) as error:
            raise BatchNormError(f"{of} must be a checkpoint of tensors; {path.name} is not one: {error}") from error
    return content, lost


def _unread(path: Path) -> str | None:
    """Why a file is none that torch or safetensors wrote, as far as its first bytes tell."""
    if not path.stat().st_size:
        return "is empty"
    with path.open("rb") as file:
        start = file.read(2)
    # A zip archive, or a pickle as torch wrote it before.
    strange = path.suffix != ".safetensors" and start != b"PK" and start[:1] != b"\x80"
    return "is no torch.save file" if strange else None


def changed(new: dict[str, Tensor], old: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state dict whose values are not those of another, compared in the other's dtypes."""
    return {
        name: value
        for name, value in new.items()
        if isinstance(value, Tensor)
        and (name not in old or not torch.equal(value.cpu().to(old[name].dtype), old[name].cpu()))
    }


def load_state(path: str | Path, key: str | None = None, name: str = "weights") -> dict[str, Tensor]:
    """The state dict in a `.pt`, `.pth`, `.bin` or `.safetensors` file, as data only.

    Raises:
        BatchNormError: as `load_archive`.
    """
    return load_archive(path, key, name).state


def save_archive(archive: Archive, path: str | Path) -> None:
    """Write all of a checkpoint; a `.safetensors` file takes the tensors and the metadata, if there is any."""
    if Path(path).suffix == ".safetensors":
        save_state(archive.stored, path, archive.metadata)
    elif archive.safetensors:
        save_state(archive.stored, path)
    else:
        write_atomically(path, lambda temporary: torch.save(archive.content, temporary))
