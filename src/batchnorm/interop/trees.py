"""Nested dictionaries of arrays, flat by path and back; and their two file forms, .msgpack and .npz."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from batchnorm.errors import BatchNormError
from batchnorm.files import write_atomically
from batchnorm.interop.extras import needs
from batchnorm.interop.whole_files import write_bytes

Path_ = tuple[Any, ...]


def flatten(tree: Any, path: Path_ = ()) -> dict[Path_, Any]:
    """The leaves of nested mappings and lists by path.

    Example:
        >>> flatten({"a": {"b": 1}, "c": 2})
        {('a', 'b'): 1, ('c',): 2}
    """
    if isinstance(tree, Mapping):
        return {p: leaf for key, value in tree.items() for p, leaf in flatten(value, (*path, key)).items()}
    return {} if tree is None else {path: tree}


def unflatten(flat: Mapping[Path_, Any]) -> dict[Any, Any]:
    """Nested dictionaries from leaves by path.

    Example:
        >>> unflatten({("a", "b"): 1})
        {'a': {'b': 1}}
    """
    tree: dict[Any, Any] = {}
    for path, leaf in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def as_array(leaf: Any) -> Any:
    """A leaf as numpy holds it; bfloat16, which numpy lacks, as float32."""
    leaf = getattr(leaf, "value", leaf) if not hasattr(leaf, "shape") else leaf
    try:
        array = np.asarray(leaf)
    except TypeError as error:  # a typed random key
        raise BatchNormError(f"source must hold arrays of numbers; one is a {type(leaf).__name__}") from error
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def load_tree(path: Path) -> dict[Any, Any]:
    """The tree in a .msgpack file (Flax's serialization) or an .npz file (paths joined by "/"), as data only.

    Raises:
        BatchNormError: the file is not one.
    """
    try:
        if path.suffix == ".npz":
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
                tree: Any = unflatten({tuple(key.split("/")): archive[key] for key in archive.files})
        else:
            tree = needs("msgpack").unpackb(path.read_bytes(), ext_hook=_extension, raw=False, strict_map_key=False)
    except BatchNormError:
        raise
    except Exception as error:
        raise BatchNormError(
            f"source must be a tree of arrays; {path.name} could not be read as one ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(tree, dict) or any(not isinstance(leaf, np.ndarray) for leaf in flatten(tree).values()):
        raise BatchNormError(f"source must hold arrays by name; {path.name} does not")
    return tree


def save_tree(tree: Mapping[Any, Any], path: Path) -> Path:
    """Write a tree to a .msgpack or .npz file."""
    flat = flatten(tree)
    if path.suffix == ".npz":
        named = {"/".join(map(str, key)): leaf for key, leaf in flat.items()}

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.savez(file, **named)

        write_atomically(path, write)
    else:
        write_bytes(path, needs("msgpack").packb(_with_text_keys(tree), default=_pack, strict_types=True))
    return path


def _with_text_keys(tree: Any) -> Any:
    return {str(k): _with_text_keys(v) for k, v in tree.items()} if isinstance(tree, Mapping) else tree


def _pack(leaf: Any) -> Any:
    msgpack, array = needs("msgpack"), np.asarray(leaf)
    return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes("C")), use_bin_type=True))


def _extension(code: int, data: bytes) -> Any:
    """An array (1) or a numpy number (3) of Flax's serialization."""
    if code not in (1, 3):
        raise BatchNormError(f"source must hold arrays; it holds an extension of type {code}")
    shape, dtype, buffer = needs("msgpack").unpackb(data, raw=False)
    if dtype == "bfloat16":
        wide = np.frombuffer(buffer, dtype=np.uint16).astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)
    kind = np.dtype(dtype)
    if kind.kind not in "fiub" or math.prod(shape) * kind.itemsize != len(buffer):
        raise BatchNormError(f"source must hold arrays of numbers; one says it is {dtype} of shape {tuple(shape)}")
    return np.frombuffer(buffer, dtype=kind).reshape(shape).copy()
