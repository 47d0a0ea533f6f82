"""The batch norm layers in a file, recognised by their buffers, never by their names."""

from __future__ import annotations

import mmap
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from batchnorm.diagnosis.checkpoint import safetensors_file, torch_file
from batchnorm.diagnosis.checkpoint.entry import MOST_CHANNELS, Entry, mapped
from batchnorm.errors import BatchNormError

STATISTICS = ("running_mean", "running_var")
KEYS = (*STATISTICS, "num_batches_tracked", "weight", "bias")
FIRST = 1024  # values compared of a tensor that is not a batch norm's


@dataclass
class StoredLayer:
    """One layer of a file; vectors are float64, None where the file has none or one of another shape."""

    name: str
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
    def initial(self) -> bool:
        """Whether the statistics are those of a new layer."""
        return self.mean is not None and self.var is not None and bool((self.mean == 0).all() and (self.var == 1).all())


@dataclass
class CheckpointEvidence:
    """One file: its batch norm layers, how many tensors it has, and the start of each of the others."""

    path: Path
    layers: dict[str, StoredLayer]
    tensors: int
    size: int
    others: dict[str, Tensor] = field(default_factory=dict, repr=False)


def gather(path: str | Path, sample_others: bool = False) -> CheckpointEvidence:
    """Read a file's batch norm tensors and nothing else of it (`sample_others`: and the start of every tensor).

    Raises:
        BatchNormError: no such file, not a checkpoint, truncated or inconsistent.
    """
    path = Path(path)
    if not path.is_file():
        what = "a folder" if path.is_dir() else "nothing"
        raise BatchNormError(f"path must be an existing checkpoint file; there is {what} at {path}")
    with mapped(path) as data:
        try:
            torch_zip = data[:4] == b"PK\x03\x04" or path.suffix not in (".safetensors", "")
            entries = torch_file.entries(path, data) if torch_zip else safetensors_file.entries(data)
        except (ValueError, zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
            raise BatchNormError(f"path must be a checkpoint of tensors; {path.name} is not one: {error}") from error
        names = _strip_wrapper(entries)
        prefixes = _prefixes(names)
        layers = {prefix: _layer(prefix, names, data) for prefix in prefixes}
        taken = {_join(prefix, key) for prefix in prefixes for key in KEYS}
        others = {}
        if sample_others:
            for name, entry in names.items():
                values = entry.read(data, FIRST) if name not in taken else None
                if values is not None:
                    others[name] = values
    return CheckpointEvidence(path, layers, len(entries), path.stat().st_size, others)


def _prefixes(names: dict[str, Entry]) -> list[str]:
    found: dict[str, None] = {}
    for name in names:
        prefix, _, key = name.rpartition(".")
        if key in STATISTICS or key == "num_batches_tracked":
            found[prefix] = None
    return list(found)


def _strip_wrapper(entries: dict[str, Entry]) -> dict[str, Entry]:
    """Names without the key they are all under, as in `{"state_dict": ..., "optimizer": ...}`."""
    prefixes = _prefixes(entries)
    for wrapper in ("state_dict", "model_state_dict", "model", "module", "net"):
        if prefixes and all(p == wrapper or p.startswith(wrapper + ".") for p in prefixes):
            return {n.removeprefix(wrapper + "."): e for n, e in entries.items()}
    return entries


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def _layer(prefix: str, names: dict[str, Entry], data: mmap.mmap) -> StoredLayer:
    layer = StoredLayer(prefix)
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
