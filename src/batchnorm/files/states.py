"""Where the state dicts of a checkpoint lie, which one is meant, and what a wrapper added to the names in it."""

from __future__ import annotations

import mmap
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from batchnorm.errors import BatchNormError
from batchnorm.files import safetensors_file, torch_file
from batchnorm.files.entry import Entry

STATISTICS = ("running_mean", "running_var")
# Keys under which a checkpoint keeps the model's own state dict; without batch norm in it, these say which it is.
MODEL_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "module", "network", "net", "weights", "params")
# What wrappers put into names: DDP and DataParallel, torch.compile, FSDP, activation checkpointing.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# What a damaged archive raises.
UNREADABLE = (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError)
DEEPEST = 16
Keys = tuple[Any, ...]  # strings, and places in lists and numbers where dicts have such


def entries(path: Path, data: mmap.mmap) -> dict[Keys, dict[str, Entry]]:
    """The tensors of a file by the keys of their state dict and their name in it, and where their bytes lie.

    Raises:
        ValueError: the reason why the file cannot be read as data.
    """
    torch_zip = data[:4] == b"PK\x03\x04" or path.suffix not in (".safetensors", "")
    try:
        return torch_file.entries(path, data) if torch_zip else {(): safetensors_file.entries(data)}
    except UNREADABLE as error:
        raise ValueError(str(error)) from error


def in_tree(content: Any) -> dict[Keys, list[str]]:
    """The names of the tensors in every dict of a loaded checkpoint that holds some.

    By numbers, as an optimizer keeps its state, and in lists only those that hold running statistics.
    """
    found: dict[Keys, list[str]] = {}
    pending: list[tuple[Keys, Any]] = [((), content)]
    while pending:
        keys, value = pending.pop()
        is_list = isinstance(value, (list, tuple))
        if not (is_list or isinstance(value, Mapping)) or len(keys) > DEEPEST:
            continue
        items: list[tuple[Any, Any]] = list(enumerate(value) if is_list else value.items())
        names: list[str] = [name for name, item in items if isinstance(name, str) and isinstance(item, Tensor)]
        if names and (all(isinstance(key, str) for key in keys) or _has_statistics(names)):
            found[keys] = names
        pending += [((*keys, key), item) for key, item in reversed(items) if isinstance(key, (str, int))]
    return found


def _has_statistics(names: Iterable[str]) -> bool:
    return any(name.rpartition(".")[2] in STATISTICS for name in names)


def with_batch_norm(states: Mapping[Keys, Iterable[str]]) -> list[Keys]:
    """The states that hold running statistics."""
    return [keys for keys, names in states.items() if _has_statistics(names)]


def choose(states: Mapping[Keys, Iterable[str]], key: str | None, file: str, kind: str = "dict") -> tuple[Keys, str]:
    """The keys of the state dict that is meant, and the prefix of the names that belong to it.

    Raises:
        BatchNormError: there is none, there is no such key, or there are several and no key says which.
    """
    if not states:
        raise BatchNormError(f"weights must hold tensors by name; {file} holds a {kind}")
    if key is not None:
        return _at(states, key, file)
    candidates = with_batch_norm(states) or list(states)
    if len(candidates) > 1:
        # Without running statistics to tell by, the usual names decide; an optimizer has tensors too.
        named = [keys for keys in candidates if keys and keys[-1] in MODEL_KEYS]
        if with_batch_norm(states) or len(named) != 1:
            listed = ", ".join(dotted(keys) or "the file's own names" for keys in candidates[:6])
            raise BatchNormError(
                f"key must say which state dict is meant; {file} holds {len(candidates)}: {listed}. Add "
                f"--key {dotted(next(k for k in candidates if k))}"
            )
        candidates = named
    return candidates[0], ""


def _at(states: Mapping[Keys, Iterable[str]], key: str, file: str) -> tuple[Keys, str]:
    """The longest keys that begin key; what is left of it is a prefix of names."""
    for keys in sorted(states, key=len, reverse=True):
        whole = dotted(keys)
        if key == whole:
            return keys, ""
        rest = key if not whole else key.removeprefix(f"{whole}.") if key.startswith(f"{whole}.") else ""
        if rest and any(name.startswith(f"{rest}.") for name in states[keys]):
            return keys, f"{rest}."
    listed = ", ".join(dotted(keys) for keys in states if keys) or "none"
    raise BatchNormError(f"key must be one that holds a state dict; {file} has {listed}; it was {key!r}")


def dotted(keys: Keys) -> str:
    """Keys as `--key` takes them."""
    return ".".join(map(str, keys))


def bare(name: str) -> str:
    """A name without what wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def fitting(stored: Mapping[str, Any], wanted: list[str], what: str) -> dict[str, str]:
    """What the names that a model wants are called in a file; nothing where they are the same, or do not fit.

    Raises:
        BatchNormError: they fit under several prefixes.
    """
    if not wanted or all(name in stored for name in wanted):
        return {}
    held = {bare(name): name for name in stored}
    first = bare(wanted[0])
    prefixes = [name.removesuffix(first) for name in held if name == first or name.endswith(f".{first}")]
    fits = [p for p in dict.fromkeys(prefixes) if all(p + bare(name) in held for name in wanted)]
    if len(fits) > 1:
        listed = ", ".join(prefix.rstrip(".") for prefix in fits)
        raise BatchNormError(f"key must say whose names are meant; {what} has them under {listed}")
    if not fits:
        return {}
    found = {name: held[fits[0] + bare(name)] for name in wanted}
    # What else lies under the prefix is for the model's own strict load to refuse.
    rest = {name.removeprefix(fits[0]): of for name, of in held.items() if name.startswith(fits[0])}
    return found | {name: of for name, of in rest.items() if of not in found.values()}
