"""The header of a safetensors file: names, types, shapes and offsets, checked before any is believed."""

from __future__ import annotations

import json
import mmap
from math import prod
from typing import Any

import torch

from batchnorm.files.entry import Entry

LONGEST_HEADER = 100_000_000  # the format's own limit
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def entries(data: mmap.mmap) -> dict[str, Entry]:
    """Every tensor by name; raises `ValueError` with the reason for a header that cannot be right."""
    if len(data) < 8:
        raise ValueError("the file is shorter than a header")
    length = int.from_bytes(data[:8], "little")
    if length > min(len(data) - 8, LONGEST_HEADER):
        raise ValueError(f"the header claims {length} bytes, the file has {len(data)}")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise ValueError("the header is not JSON") from error
    if not isinstance(header, dict):
        raise ValueError("the header is not a JSON object")
    found = {}
    for name, record in header.items():
        if name != "__metadata__":
            entry = _entry(name, record, 8 + length, len(data))
            if entry is not None:
                found[name] = entry
    return found


def _entry(name: str, record: Any, base: int, size: int) -> Entry | None:
    if not isinstance(record, dict):
        raise ValueError(f"the header's entry {name[:80]!r} is not an object")
    shape: Any = record.get("shape")
    offsets: Any = record.get("data_offsets")
    kind: Any = record.get("dtype")
    numbers = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    if not numbers or not all(type(n) is int and 0 <= n < 2**63 for n in [*shape, *offsets]):
        raise ValueError(f"the header's entry {name[:80]!r} has no valid shape and offsets")
    start, stop = offsets
    if not start <= stop <= size - base:
        raise ValueError(f"tensor {name[:80]!r} lies outside the file: it is truncated, or the header is wrong")
    dtype = DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        return None
    if prod(shape) * dtype.itemsize != stop - start:
        raise ValueError(f"tensor {name[:80]!r} claims shape {shape[:8]} and {stop - start} bytes")
    return Entry(dtype, tuple(shape), base + start, base + stop)
