"""Every verb on a list of networks, in eval and in train: a table in times of a forward, with what went wrong.

The networks come from a Python file that defines `NETWORKS`, a dict from a name to a function without arguments that
returns `(model, batches)`: batches are tuples of the model's arguments, tensors, or dicts of keyword arguments. Such a
file may import whatever libraries are installed. Without one, three small networks of torch's own are tried.

    cd benchmarks/networks && python networks.py --networks others.py --out others.json

A verb is at fault if it raises anything but a `BatchNormError`, if it leaves anything of the model changed that it must
not change, or if its numbers are wrong: `checks.py` computes each of them in another way.
"""

from __future__ import annotations

import argparse
import copy
import json
import runpy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from checks import VERBS, Case, Fault, fingerprint, forward, once
from torch import Tensor, nn

import batchnorm
from batchnorm.models import batch_norm_layers


def small() -> dict[str, Callable[[], tuple[nn.Module, list[Any]]]]:
    """Networks to try the script with."""

    def plain() -> tuple[nn.Module, list[Any]]:
        blocks = [m for _ in range(4) for m in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())]
        return nn.Sequential(nn.Conv2d(3, 8, 1), *blocks), [torch.randn(8, 3, 16, 16) for _ in range(10)]

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.bn, self.b = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)

        def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
            h = self.bn(self.a(x)).relu()
            return {"y": self.bn(self.b(h)) * scale}

    def rows() -> list[Any]:
        return [(torch.randn(16, 6),) for _ in range(10)]

    spectral = nn.utils.parametrizations.spectral_norm
    return {
        "plain": plain,
        "one layer twice": lambda: (Twice(), rows()),
        "spectral norm": lambda: (nn.Sequential(spectral(nn.Linear(6, 8)), nn.BatchNorm1d(8), nn.ReLU()), rows()),
    }


def one(verb: Callable[[nn.Module, Case], str], case: Case, training: bool) -> dict[str, Any]:
    """A verb on a copy of the network: seconds, what came of it, and what was at fault."""
    copied = copy.deepcopy(case.model).train(training)
    before, said, fault = fingerprint(copied), "", ""
    leaves = verb.__name__ in LEAVES
    begun = time.perf_counter()
    try:
        said = verb(copied, case)
    except batchnorm.BatchNormError as error:
        said, leaves = f"refused: {error}", verb.__name__ not in CONVERTING
    except Fault as error:
        fault = str(error)
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
    spent = case.spent.pop() if case.spent else time.perf_counter() - begun
    case.spent.clear()
    if not fault and leaves:
        changed = fingerprint(copied).items() ^ before.items()
        fault = f"the model was changed: {sorted({name for name, _ in changed})[:3]}" if changed else ""
    return {"seconds": spent, "said": said, "fault": fault}


CONVERTING = {"to_stock", "fuse_activations", "accumulate", "export"}
LEAVES = {"fold", "diagnose", "adapt", "freeze", "pause", "watch", "inspect_checkpoint", "export"}


def measure(make: Callable[[], tuple[nn.Module, list[Any]]]) -> dict[str, Any]:
    """One network: seconds of a forward of all batches, and for each verb times that and what came of it."""
    torch.manual_seed(0)
    model, batches = make()
    with torch.no_grad():
        model.train()
        for batch in batches:
            forward(model, batch)
        model.eval()
        once(model, batches[0])
        start = time.perf_counter()
        for batch in batches:
            once(model, batch)
        seconds = time.perf_counter() - start
    case = Case(model, batches)
    row: dict[str, Any] = {"layers": len(batch_norm_layers(model)), "forward, s": seconds, "verbs": {}}
    for name, verb in VERBS.items():
        results = [one(verb, case, training) for training in (False, True)]
        said = list(dict.fromkeys(result["said"] for result in results))
        row["verbs"][name] = {
            "forwards": round(results[0]["seconds"] / seconds, 2),
            "said": said[0] if len(said) == 1 else f"{said[0]}; in train mode: {said[1]}",
            "fault": "; ".join(dict.fromkeys(result["fault"] for result in results if result["fault"])),
        }
    return row


def table(rows: dict[str, Any]) -> str:
    """Markdown: times of a forward of the data, or what was at fault; - where it was refused."""
    names = list(next(iter(rows.values()))["verbs"])
    lines = [f"| network | layers | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for network, row in rows.items():
        lines.append(f"| {network} | {row['layers']} | {' | '.join(_cell(v) for v in row['verbs'].values())} |")
    return "\n".join(lines)


def _cell(found: dict[str, Any]) -> str:
    if found["fault"]:
        return f"fault: {found['fault']}"
    return "refused" if found["said"].startswith("refused") else f"{found['forwards']:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=Path, help="a Python file that defines NETWORKS")
    parser.add_argument("--only", nargs="*", help="names of some of them")
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    given = parser.parse_args()
    factories = small() if given.networks is None else runpy.run_path(str(given.networks))["NETWORKS"]
    rows: dict[str, Any] = {}
    for name, make in factories.items():
        if given.only and name not in given.only:
            continue
        rows[name] = measure(make)
        print(name, json.dumps(rows[name]["verbs"]), flush=True)
        if given.out:
            given.out.write_text(json.dumps({"torch": torch.__version__, "networks": rows}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
