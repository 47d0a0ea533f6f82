"""The largest output difference after carrying one network from each framework to each other one.

Run in an environment with the frameworks (`make test-interop` makes one), from the root:
`python benchmarks/interop/matrix.py`. Writes matrix.json beside itself.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax" if importlib.util.find_spec("jax") else "torch")
sys.path.insert(0, str(Path(__file__).parents[2]))
warnings.simplefilter("ignore")

import numpy as np  # noqa: E402

from tests.interop import networks, test_training  # noqa: E402
from tests.interop.test_matrix import UNSAID  # noqa: E402

PACKAGES = ("torch", "keras", "jax", "flax", "equinox", "dm-haiku", "numpy")


def matrix(seeds: int) -> dict[str, dict[str, dict[str, float]]]:
    """For every pair the largest relative difference of outputs over the seeds, before and after."""
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for source in networks.NETWORKS:
        for target in networks.NETWORKS:
            before, after = 0.0, 0.0
            for seed in range(seeds):
                one = networks.make(source, 10 + seed)
                other = networks.make(target, 20 + seed, **({"eps": 0.1} if target in networks.SETTABLE else {}))
                x = np.random.default_rng(seed).normal(0.5, 1.5, networks.INPUT).astype(np.float32)
                wanted = one.infer(x)
                scale = max(1.0, float(np.abs(wanted).max()))
                before = max(before, float(np.abs(other.infer(x) - wanted).max()) / scale)
                other.fill(one.source, **UNSAID.get(source, {}))
                after = max(after, float(np.abs(other.infer(x) - wanted).max()) / scale)
            rows.setdefault(source, {})[target] = {"before": before, "after": after}
            print(f"{source:8} -> {target:8} {before:.3g} -> {after:.3g}", flush=True)
    return rows


def training() -> dict[str, dict[str, float]]:
    """Relative loss differences over the steps that torch goes on with."""
    rows = {}
    for name, make, choices in (
        ("keras", test_training.keras_network, {}),
        ("linen", test_training.linen_network, {"eps": networks.EPS, "momentum": 1 - networks.DECAY}),
    ):
        train, weights = make()
        _, first, theirs, ours = test_training.both(train, weights, choices)
        difference = np.abs(ours / theirs - 1)
        rows[name] = {
            "steps_before": len(first),
            "steps_after": len(ours),
            "loss_first": float(first[0]),
            "loss_at_the_change": float(ours[0]),
            "loss_last": float(ours[-1]),
            "largest_relative_difference": float(difference.max()),
        }
        print(name, rows[name], flush=True)
    return rows


if __name__ == "__main__":
    result = {
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "training": training(),
        "matrix": matrix(3),
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
