"""Every verb on a list of networks: a table network x verb, in times of a forward, with what went wrong.

The networks come from a Python file that defines `NETWORKS`, a dict from a name to a function without arguments that
returns `(model, batches)`: batches are tuples of the model's arguments, tensors, or dicts of keyword arguments. Such a
file may import whatever libraries are installed. Without one, three small networks of torch's own are tried.

    python benchmarks/networks.py --networks my_networks.py --out benchmarks/networks.json

A verb is at fault if it raises anything but a `BatchNormError`, if it changes what it must leave (its name ends
in "changed"), or if the output in eval differs where it must not.
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
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import batchnorm
from batchnorm.models import batch_norm_layers


def forward(model: nn.Module, batch: Any) -> Any:
    """The model on one batch, whatever its shape."""
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


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


def fingerprint(model: nn.Module) -> list[tuple[str, int]]:
    """Every parameter and buffer, and every plain attribute, as it is."""
    found = [(n, hash(t.detach().cpu().numpy().tobytes())) for n, t in model.state_dict().items() if t.numel()]
    for name, module in model.named_modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, (int, float, str, bool, type(None)))}
        found.append((name, hash(repr(sorted(plain.items())))))
    return found


def apart(a: Any, b: Any) -> float:
    """The largest difference of two outputs, relative to the largest value."""
    pairs = zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True)
    tensors = [(x.double(), y.double()) for x, y in pairs if isinstance(x, Tensor) and x.is_floating_point()]
    return max(
        (float((x - y).abs().max() / x.abs().max().clamp_min(1e-30)) for x, y in tensors if x.numel()), default=0
    )


def verbs(batches: list[Any]) -> dict[str, tuple[Callable[[nn.Module], Any], bool, bool]]:
    """What each verb does to a copy, whether it must leave the model as it was, and whether its eval output."""

    def convert(model: nn.Module) -> str:
        batchnorm.convert(model)
        return f"{len(batch_norm_layers(model))} layers"

    def fold(model: nn.Module) -> str:
        first = batches[0] if isinstance(batches[0], (tuple, dict)) else (batches[0],)
        result = batchnorm.fold(model, first, timing=0)
        return f"{len(result.layers) - len(result.left)} of {len(result.layers)} folded"

    def recalibrate(model: nn.Module) -> str:
        result = batchnorm.recalibrate(model, batches, forward_fn=forward, progress=False)
        return f"residual {max(result.residual.values()):.0e}" + ("" if result.converged else ", not converged")

    def diagnose(model: nn.Module) -> str:
        return ", ".join(sorted({f.code for f in batchnorm.diagnose(model, batches, forward_fn=forward).findings}))

    def fuse(model: nn.Module) -> str:
        batchnorm.convert(model)
        batchnorm.fuse_activations(model, batches[0], progress=False)
        return f"{sum(layer.activation is not None for layer in batch_norm_layers(model).values())} fused"  # pyright: ignore

    def adapt(model: nn.Module) -> str:
        result = batchnorm.adapt(model, batches, forward_fn=forward)
        result.undo()
        return result.choice.mode

    def pause(model: nn.Module) -> None:
        with batchnorm.pause(model):
            pass

    def accumulate(model: nn.Module) -> None:
        with batchnorm.accumulate(batchnorm.convert(model)):
            pass

    return {
        "convert": (convert, False, True),
        "convert, to_stock": (lambda m: batchnorm.to_stock(batchnorm.convert(m)) and "", False, True),
        "fuse_activations": (fuse, False, True),
        "fold": (fold, True, True),
        "recalibrate": (recalibrate, False, False),
        "diagnose": (diagnose, True, True),
        "adapt": (adapt, True, True),
        "freeze": (lambda m: batchnorm.unfreeze(batchnorm.freeze(m)) and "", True, True),
        "pause": (pause, True, True),
        "accumulate": (accumulate, False, True),
    }


def measure(make: Callable[[], tuple[nn.Module, list[Any]]]) -> dict[str, Any]:
    """One network: seconds of a forward of all batches, and for each verb times that and what came of it."""
    torch.manual_seed(0)
    model, batches = make()
    with torch.no_grad():
        model.train()
        for batch in batches[:3]:
            forward(model, batch)
        model.eval()
        start = time.perf_counter()
        for batch in batches:
            torch.manual_seed(0)
            forward(model, batch)
        seconds = time.perf_counter() - start
    row: dict[str, Any] = {"layers": len(batch_norm_layers(model)), "forward, s": seconds, "verbs": {}}
    for name, (verb, leaves, keeps) in verbs(batches).items():
        copied = copy.deepcopy(model)
        before, said, fault = fingerprint(copied), "", ""
        with torch.no_grad():
            torch.manual_seed(0)
            output = forward(copied, batches[0])
        begun = time.perf_counter()
        try:
            said = verb(copied) or ""
        except batchnorm.BatchNormError as error:
            said = f"refused: {error}"
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        spent = time.perf_counter() - begun
        if not fault and leaves and fingerprint(copied) != before:
            fault = "the model was changed"
        if not fault and keeps:
            with torch.no_grad():
                torch.manual_seed(0)
                gap = apart(output, forward(copied, batches[0]))
            fault = f"the output differs by {gap:.1e}" if gap > 1e-4 else ""
        row["verbs"][name] = {"forwards": round(spent / seconds, 2), "said": said, "fault": fault}
    return row


def table(rows: dict[str, Any]) -> str:
    """Markdown: times of a forward, a cross with its reason where something went wrong."""
    names = list(next(iter(rows.values()))["verbs"])
    lines = [f"| network | layers | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for network, row in rows.items():
        verbs_of = row["verbs"].values()
        cells = [f"fault: {v['fault']}" if v["fault"] else f"{v['forwards']:.1f}" for v in verbs_of]
        lines.append(f"| {network} | {row['layers']} | {' | '.join(cells)} |")
    return "\n".join(lines)


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
