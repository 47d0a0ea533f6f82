"""The batch norm layers in a file, recognised by their buffers, never by their names."""

from __future__ import annotations

import mmap
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from batchnorm.errors import BatchNormError
from batchnorm.files import check_readable, onnx_file, states
from batchnorm.files.entry import MOST_CHANNELS, Entry, mapped
from batchnorm.files.states import STATISTICS

KEYS = (*STATISTICS, "num_batches_tracked", "weight", "bias")
FIRST = 1024  # values compared of a tensor that is not a batch norm's


@dataclass
class StoredLayer:
    """One layer of a file; vectors are float64, None where the file has none or one of another shape."""

    name: str
    # Where the state dict lies in the file, as `--key` takes it; "" for a file that is one.
    key: str = ""
    # The file, and the key where it has several, as options of a command; "" for a file that no command repairs.
    weights: str = ""
    mean: Tensor | None = None
    var: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    counter: float | None = None
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """How many, by the first vector there is."""
        return next((v.numel() for v in (self.mean, self.var, self.weight, self.bias) if v is not None), 0)

    @property
    def statistics(self) -> Tensor | None:
        """Mean and variance as two rows, where both are there and fit each other."""
        fit = self.mean is not None and self.var is not None and self.mean.shape == self.var.shape
        return torch.stack([self.mean, self.var]) if fit else None  # pyright: ignore[reportArgumentType]

    @property
    def initial(self) -> bool:
        """Whether the statistics are those of a new layer."""
        return self.mean is not None and self.var is not None and bool((self.mean == 0).all() and (self.var == 1).all())


@dataclass
class CheckpointEvidence:
    """One file: its batch norm layers, how many tensors it has, and the start of each of the others.

    keys are those of the state dicts with batch norm in them.
    """

    path: Path
    layers: dict[str, StoredLayer]
    tensors: int
    size: int
    others: dict[str, Tensor] = field(default_factory=dict, repr=False)
    keys: tuple[str, ...] = ()


def gather(
    path: str | Path, sample_others: bool = False, key: str | None = None, name: str = "path"
) -> CheckpointEvidence:
    """Read a file's batch norm tensors and nothing else of it (`sample_others`: and the start of every tensor).

    Without a key all state dicts with batch norm are read; where there are several, names begin with their keys.

    Raises:
        BatchNormError: no such file, not a checkpoint, truncated or inconsistent, or no such key.
    """
    path = check_readable(path, name, "checkpoint file")
    with mapped(path, name) as data:
        try:
            onnx = path.suffix == ".onnx"
            held: dict[states.Keys, dict[str, Any]] = (
                {(): onnx_file.entries(path)} if onnx else states.entries(path, data)
            )
        except ValueError as error:
            raise BatchNormError(f"{name} must be a checkpoint of tensors; {path.name} is not one: {error}") from error
        tensors, size = sum(map(len, held.values())), path.stat().st_size
        chosen: dict[states.Keys, dict[str, Entry]] = {k: held[k] for k in states.with_batch_norm(held) or held}
        if key is not None:
            keys, prefix = states.choose(held, key, path.name)
            found = {n.removeprefix(prefix): e for n, e in held[keys].items() if n.startswith(prefix)}
            chosen = {tuple(key.split(".")): found}
        evidence = CheckpointEvidence(path, {}, tensors, size, keys=tuple(states.dotted(keys) for keys in chosen))
        for keys, names in chosen.items():
            _read(evidence, states.dotted(keys), names, data, sample_others)
    return evidence


def _read(
    evidence: CheckpointEvidence, key: str, names: dict[str, Entry], data: mmap.mmap, sample_others: bool
) -> None:
    """The layers of one state dict, named with its key where there are several."""
    prefixes = _prefixes(names)
    shown = key if len(evidence.keys) > 1 else ""
    for prefix in prefixes:
        layer = _layer(_join(shown, prefix) if prefix else shown, prefix, names, data)
        layer.key = key
        if evidence.path.suffix != ".onnx":
            named = f" --key {shlex.quote(key)}" if len(evidence.keys) > 1 else ""
            layer.weights = f"--weights {shlex.quote(str(evidence.path))}{named}"
        evidence.layers[layer.name] = layer
    taken = {_join(prefix, of) for prefix in prefixes for of in KEYS}
    for name, entry in names.items() if sample_others else ():
        values = entry.read(data, FIRST) if name not in taken else None
        if values is not None:
            evidence.others[_join(shown, name)] = values


def _prefixes(names: dict[str, Entry]) -> list[str]:
    found: dict[str, None] = {}
    for name in names:
        prefix, _, key = name.rpartition(".")
        if key in STATISTICS or key == "num_batches_tracked":
            found[prefix] = None
    return list(found)


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def _layer(shown: str, prefix: str, names: dict[str, Entry], data: mmap.mmap) -> StoredLayer:
    layer = StoredLayer(shown)
    for key in KEYS:
        entry = names.get(_join(prefix, key))
        if entry is None:
            continue
        layer.dtypes[key], layer.shapes[key] = entry.dtype, entry.shape
        if key == "num_batches_tracked":
            values = entry.read(data) if entry.shape in ((), (1,)) else None
            layer.counter = float(values[0]) if values is not None and values.numel() else None
        elif len(entry.shape) == 1 and entry.shape[0] <= MOST_CHANNELS:
            values = entry.read(data)
            setattr(layer, {"running_mean": "mean", "running_var": "var"}.get(key, key), values)
    return layer
