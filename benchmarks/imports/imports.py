"""Seconds that importing the package, and first using its names, add to torch's own: fresh processes in turn.

`python benchmarks/imports/imports.py`; writes `imports.json`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

ROUNDS = 15
CLOCK = "import time; start = time.perf_counter(); {work}; print(time.perf_counter() - start)"
WORK = {
    "import torch": "import torch",
    "and import batchnorm": "import torch, batchnorm",
    "and a layer": "import torch, batchnorm; batchnorm.BatchNorm2d",
    "and recalibrate": "import torch, batchnorm; batchnorm.recalibrate",
    "and diagnose": "import torch, batchnorm; batchnorm.diagnose",
    "and every name": "import torch, batchnorm; [getattr(batchnorm, name) for name in batchnorm.__all__]",
}


def seconds(work: str) -> float:
    """What a new process says it took."""
    command = [sys.executable, "-c", CLOCK.format(work=work)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Measure, print, keep the JSON."""
    times: dict[str, list[float]] = {name: [] for name in WORK}
    for turn in range(ROUNDS + 1):
        for name, work in WORK.items():
            spent = seconds(work)
            if turn:  # the first fills the file cache
                times[name].append(spent)
    torch_alone = times["import torch"]
    found = {
        name: {
            "milliseconds": round(1e3 * statistics.median(values), 1),
            "beyond torch": round(1e3 * statistics.median(a - b for a, b in zip(values, torch_alone, strict=True)), 1),
        }
        for name, values in times.items()
    }
    for name, row in found.items():
        print(f"{name:24} {row['milliseconds']:8.1f} ms, {row['beyond torch']:6.1f} beyond torch")
    Path(__file__).with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
