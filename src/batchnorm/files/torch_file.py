"""What `torch.save` writes: the pickle read as data, and where each tensor's bytes lie in the file."""

from __future__ import annotations

import mmap
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from batchnorm.files.entry import Entry
from batchnorm.files.unpickle import Lazy, Reader, Storage, Thing, read

LONGEST_PICKLE = 128_000_000
DEEPEST = 64
MAGIC = 0x1950A86A20F9469CFC6C  # torch.serialization's


Keys = tuple[str, ...]


def entries(path: Path, data: mmap.mmap) -> dict[Keys, dict[str, Entry]]:
    """Every tensor by the keys of its dict and its name there; raises `ValueError` for what cannot be read."""
    tree, place = _tree(path, data)
    found: dict[Keys, dict[str, Entry]] = {}
    for keys, name, tensor in _tensors(tree):
        found.setdefault(keys, {})[name] = _placed(tensor, name, place)
    return found


def without_objects(path: Path, data: mmap.mmap) -> tuple[Any, list[str]]:
    """All that is data in a file, as it was saved, and the keys of the objects that are left out."""
    tree, place = _tree(path, data)
    left_out: list[str] = []

    def plain(value: Any, keys: Keys) -> Any:
        if isinstance(value, Lazy):
            return _placed(value, ".".join(keys), place).tensor(data)
        if isinstance(value, SIMPLE) or value is None:
            return value
        if len(keys) > DEEPEST or not isinstance(value, (dict, list, tuple)):
            left_out.append(".".join(keys))
            return _LEFT_OUT
        items = value.items() if isinstance(value, dict) else enumerate(value)
        kept = {key: plain(item, (*keys, str(key))) for key, item in items}
        kept = {key: item for key, item in kept.items() if item is not _LEFT_OUT}
        return kept if isinstance(value, dict) else type(value)(kept.values())

    return plain(tree, ()), left_out


Place = Callable[[Lazy], Entry | None]
SIMPLE = (bool, int, float, complex, str, bytes)
_LEFT_OUT = object()


def _placed(tensor: Lazy, name: str, place: Place) -> Entry:
    entry = place(tensor)
    if entry is None:
        raise ValueError(f"tensor {name[:80]!r} points to bytes that the file does not have")
    return entry


def _tree(path: Path, data: mmap.mmap) -> tuple[Any, Place]:
    """What was saved, and where each of its tensors lies."""
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

    def place(tensor: Lazy) -> Entry | None:
        info = members.get(f"{folder}data/{tensor.storage.key}")
        return None if info is None or info.compress_type else _entry(tensor, info, data)

    return tree, place


def _before_archives(data: mmap.mmap) -> tuple[Any, Place]:
    """The format before torch 1.6: five pickles one after the other, then each storage's length and bytes."""
    parts: list[Any] = []
    storages: dict[str, Storage] = {}
    places: dict[str, tuple[int, int]] = {}
    data.seek(0)
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
    return parts[3], lambda tensor: _place(tensor, *places.get(tensor.storage.key, (0, 0)), len(data))


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
    return Entry(tensor.dtype, tensor.shape, first, stop, tensor.stride)


def _tensors(tree: Any) -> Iterator[tuple[Keys, str, Lazy]]:
    """Tensors of nested dicts, lists and pickled modules; each container once.

    Keys lead to a dict, or to a pickled object; a path inside an object is a name.
    """
    pending: list[tuple[Keys, Keys, bool, Any]] = [((), (), False, tree)]
    seen: set[int] = set()
    while pending:
        keys, name, inside, value = pending.pop()
        if isinstance(value, Lazy):
            yield (keys, ".".join(name), value) if inside else (keys[:-1], keys[-1] if keys else "", value)
            continue
        if id(value) in seen or len(keys) + len(name) > DEEPEST:
            continue
        seen.add(id(value))
        if isinstance(value, Thing):
            pending += [(keys, name, True, value.items), (keys, name, True, value.state)]
        elif isinstance(value, dict):
            # A pickled module keeps its tensors in these three.
            inner = ("_modules", "_buffers", "_parameters")
            for key, item in reversed(value.items()):
                if not inside:
                    pending.append(((*keys, str(key)), name, False, item))
                else:
                    pending.append((keys, name if key in inner else (*name, str(key)), True, item))
        elif isinstance(value, (list, tuple)):
            items = [(str(index), item) for index, item in reversed(list(enumerate(value)))]
            pending += [(keys, (*name, i), True, v) if inside else ((*keys, i), name, False, v) for i, v in items]
