"""`inspect_checkpoint` on a 5 GB checkpoint with 300 batch norm layers: seconds and memory, in a fresh process.

The file is sparse (the convolution weights are holes) and is deleted afterwards.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import statistics
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch

HERE = Path(__file__).parent
LAYERS, CHANNELS, SIZE = 300, 512, 5_000_000_000

CHILD = """
import json, resource, sys, time
import torch
torch_alone = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
from batchnorm.diagnosis import inspect_checkpoint
imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
report = inspect_checkpoint(sys.argv[1])
seconds = time.perf_counter() - start
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
channels = sum(layer.channels for layer in report.layers.values())
found = {"layers": len(report.layers), "channels": channels, "ok": report.ok}
memory = {"extra_mb": (after - imported) / 1024, "total_mb": after / 1024, "torch_alone_mb": torch_alone / 1024}
print(json.dumps({"seconds": seconds, **memory, **found}))
"""


def tensors() -> dict[str, tuple[str, list[int], bytes | None]]:
    """Names, types, shapes, and the bytes of what is batch norm's (None: a hole)."""
    generator = torch.Generator().manual_seed(0)
    weights = (SIZE // LAYERS) // 4 // CHANNELS
    found: dict[str, tuple[str, list[int], bytes | None]] = {}
    for index in range(LAYERS):
        found[f"block{index}.conv.weight"] = ("F32", [CHANNELS, weights], None)
        vectors = {"running_mean": torch.randn(CHANNELS, generator=generator),
                   "running_var": torch.rand(CHANNELS, generator=generator) + 0.5,
                   "weight": torch.rand(CHANNELS, generator=generator) + 0.5,
                   "bias": torch.randn(CHANNELS, generator=generator)}  # fmt: skip
        for name, values in vectors.items():
            found[f"block{index}.norm.{name}"] = ("F32", [CHANNELS], values.numpy().tobytes())
        found[f"block{index}.norm.num_batches_tracked"] = ("I64", [], struct.pack("<q", 1000))
    return found


def write_safetensors(path: Path) -> None:
    header, position, parts = {}, 0, []
    for name, (kind, shape, content) in tensors().items():
        size = torch.Size(shape).numel() * (8 if kind == "I64" else 4)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [position, position + size]}
        parts.append((position, content))
        position += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for start, content in parts:
            if content is not None:
                file.seek(8 + len(text) + start)
                file.write(content)
        file.truncate(8 + len(text) + position)


class _Claim:
    """A tensor of a torch.save pickle, written without having its bytes in memory."""

    def __init__(self, key: str, kind: str, shape: list[int]) -> None:
        self.key, self.kind, self.shape = key, kind, tuple(shape)

    def __reduce__(self) -> tuple:
        stride = torch.empty(self.shape, device="meta").stride()
        return torch._utils._rebuild_tensor_v2, (_Where(self), 0, self.shape, stride, False, {})


class _Where:
    def __init__(self, claim: _Claim) -> None:
        self.claim = claim


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> tuple | None:
        if not isinstance(obj, _Where):
            return None
        kind = torch.LongStorage if obj.claim.kind == "I64" else torch.FloatStorage
        return ("storage", kind, obj.claim.key, "cpu", torch.Size(obj.claim.shape).numel())


class _Sparse(io.FileIO):
    """A file in which long runs of zeros become holes."""

    def write(self, data: bytes) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        if len(data) > 65536 and not any(data[:64]) and not any(data[-64:]):
            self.seek(len(data) - 1, os.SEEK_CUR)
            return super().write(b"\0") + len(data) - 1
        return super().write(data)


def write_torch(path: Path) -> None:
    claims = {n: _Claim(str(i), kind, shape) for i, (n, (kind, shape, _)) in enumerate(tensors().items())}
    out = io.BytesIO()
    _Pickler(out, protocol=2).dump(claims)
    with zipfile.ZipFile(_Sparse(path, "w"), "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        archive.writestr("archive/data.pkl", out.getvalue())
        for name, (kind, shape, content) in tensors().items():
            size = torch.Size(shape).numel() * (8 if kind == "I64" else 4)
            archive.writestr(f"archive/data/{claims[name].key}", content if content is not None else bytes(size))
        archive.writestr("archive/byteorder", "little")


def main() -> None:
    results = {}
    for name, write in (("large.safetensors", write_safetensors), ("large.pt", write_torch)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            write(path)
            size = path.stat().st_size
            runs = []
            for _ in range(5):
                child = subprocess.run(
                    [sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=True
                )
                runs.append(json.loads(child.stdout))
        results[name] = {
            "bytes": size,
            "layers": runs[0]["layers"],
            "channels": runs[0]["channels"],
            "ok": runs[0]["ok"],
            "seconds (median of 5)": round(statistics.median(r["seconds"] for r in runs), 3),
            "seconds (all)": [round(r["seconds"], 3) for r in runs],
            "MB beyond the imports": round(max(r["extra_mb"] for r in runs), 1),
            "MB of the whole process": round(max(r["total_mb"] for r in runs), 1),
            "MB of a process that imports torch alone": round(max(r["torch_alone_mb"] for r in runs), 1),
        }
        print(name, results[name], flush=True)
    (HERE / "inspect_large.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
