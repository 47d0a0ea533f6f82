"""What `torch.save` writes: the pickle read as data, and where each tensor's bytes lie in the file."""

from __future__ import annotations

import mmap
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from batchnorm.diagnosis.checkpoint.entry import Entry
from batchnorm.diagnosis.checkpoint.unpickle import Lazy, Reader, Storage, Thing, read

LONGEST_PICKLE = 128_000_000
DEEPEST = 64
MAGIC = 0x1950A86A20F9469CFC6C  # torch.serialization's


def entries(path: Path, data: mmap.mmap) -> dict[str, Entry]:
    """Every tensor by its dotted path; raises `ValueError` with the reason for what cannot be read."""
    if data[:4] != b"PK\x03\x04":
        if data[:1] != b"\x80":
            raise ValueError("it is neither a torch.save file nor safetensors")
        return _before_archives(data)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in members if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError("the archive has no data.pkl: it was not written by torch.save")
        folder = pickles[0][: -len("data.pkl")]
        for name in (pickles[0], folder + "byteorder"):
            if name in members and (members[name].compress_type or members[name].file_size > LONGEST_PICKLE):
                raise ValueError(f"{name} is compressed or too long for a checkpoint's")
        if folder + "byteorder" in members and archive.read(folder + "byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine")
        content = archive.read(pickles[0])
    try:
        tree = read(content)
    # A hostile or truncated pickle can fail in as many ways as it has opcodes.
    except Exception as error:
        raise ValueError(f"its pickle cannot be read as data ({type(error).__name__})") from error
    found = {}
    for name, tensor in _tensors(tree):
        info = members.get(f"{folder}data/{tensor.storage.key}")
        entry = None if info is None or info.compress_type else _entry(tensor, info, data)
        if entry is None:
            raise ValueError(f"tensor {name[:80]!r} points to bytes that the file does not have")
        found[name] = entry
    return found


def _before_archives(data: mmap.mmap) -> dict[str, Entry]:
    """The format before torch 1.6: five pickles one after the other, then each storage's length and bytes."""
    parts: list[Any] = []
    storages: dict[str, Storage] = {}
    places: dict[str, tuple[int, int]] = {}
    try:
        for _ in range(5):
            reader = Reader(data, encoding="utf-8", errors="replace")
            parts.append(reader.load())
            storages.update(reader.storages)
            if len(parts) == 1 and parts[0] != MAGIC:
                raise ValueError("no magic number")
        position = data.tell()
        for key in parts[4]:
            count = int.from_bytes(data[position : position + 8], "little", signed=True)
            dtype = storages[key].dtype
            if count < 0 or dtype is None:
                raise ValueError("a storage of negative length")
            start = position + 8
            places[key] = (start, start + count * dtype.itemsize)
            position = places[key][1]
    # A hostile or truncated pickle can fail in as many ways as it has opcodes.
    except Exception as error:
        raise ValueError(f"its pickles cannot be read as data ({type(error).__name__})") from error
    found = {}
    for name, tensor in _tensors(parts[3]):
        entry = _place(tensor, *places.get(tensor.storage.key, (0, 0)), len(data))
        if entry is None:
            raise ValueError(f"tensor {name[:80]!r} points to bytes that the file does not have")
        found[name] = entry
    return found


def _entry(tensor: Lazy, info: zipfile.ZipInfo, data: mmap.mmap) -> Entry | None:
    header = data[info.header_offset : info.header_offset + 30]
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        return None
    start = info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return _place(tensor, start, start + info.file_size, len(data))


def _place(tensor: Lazy, start: int, stop: int, size: int) -> Entry | None:
    """The bytes of a tensor whose storage is `[start, stop)`; None if they are not all there."""
    first = start + tensor.offset * tensor.dtype.itemsize
    extent = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride, strict=True)) if 0 not in tensor.shape else -1
    if stop > size or first + (extent + 1) * tensor.dtype.itemsize > stop:
        return None
    stride = tensor.stride[0] if len(tensor.shape) == 1 and tensor.shape[0] > 1 else 1
    return Entry(tensor.dtype, tensor.shape, first, stop, stride)


def _tensors(tree: Any) -> Iterator[tuple[str, Lazy]]:
    """Tensors of nested dicts, lists and pickled modules; each container once."""
    pending: list[tuple[tuple[str, ...], Any]] = [((), tree)]
    seen: set[int] = set()
    while pending:
        path, value = pending.pop()
        if isinstance(value, Lazy):
            yield ".".join(path), value
            continue
        if id(value) in seen or len(path) > DEEPEST:
            continue
        if isinstance(value, Thing):
            seen.add(id(value))
            pending += [(path, value.items), (path, value.state)]
        elif isinstance(value, dict):
            seen.add(id(value))
            # A pickled module keeps its tensors in these three.
            inner = ("_modules", "_buffers", "_parameters")
            pending += [(path if key in inner else (*path, str(key)), item) for key, item in reversed(value.items())]
        elif isinstance(value, (list, tuple)):
            seen.add(id(value))
            pending += [((*path, str(index)), item) for index, item in reversed(list(enumerate(value)))]
