"""What `adapt(model, data)` decides on streams whose classes are not those of the training, beside fixed choices.

Streams of 320 to 5,000 images: balanced, one class of 95 % or all, three classes, five classes; shuffled and sorted;
clean and corrupted. Harm is an error above that of the stored statistics by more than 1 point beyond 2.6 paired
standard errors.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from adapt import load, network
from corruptions import HELD, corrupt
from torch import Tensor, nn
from torch.nn import functional

from batchnorm.models import adapt

STREAMS = ("balanced", "one95", "1", "3", "5")


class Residual(nn.Module):
    """A stem, two blocks with a shortcut, and a stride between them; six batch norm layers."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_convolution(1, width), nn.ReLU())
        self.first = nn.Sequential(*_convolution(width, width), nn.ReLU(), *_convolution(width, width))
        self.down = nn.Sequential(*_convolution(width, 2 * width, 2), nn.ReLU())
        self.second = nn.Sequential(*_convolution(2 * width, 2 * width), nn.ReLU(), *_convolution(2 * width, 2 * width))
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.stem(x)
        x = self.down((x + self.first(x)).relu())
        return self.head((x + self.second(x)).relu().mean((2, 3)))


def perceptron(size: int) -> nn.Sequential:
    """Two hidden layers of 64."""
    hidden = (nn.Linear(size * size, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.BatchNorm1d(64))
    return nn.Sequential(nn.Flatten(), *hidden, nn.ReLU(), nn.Linear(64, 10))


def _convolution(before: int, after: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)


def train(kind: str, x: Tensor, y: Tensor, seed: int, epochs: int, batch: int) -> nn.Module:
    """Adam with a falling rate."""
    torch.manual_seed(seed)
    size = x.shape[-1]
    model = {"convolutions": lambda: network(size, 16), "residual": Residual, "perceptron": lambda: perceptron(size)}[
        kind
    ]()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - epoch / epochs)
        for index in torch.randperm(len(x)).split(batch):
            if len(index) > 1:
                optimizer.zero_grad()
                functional.cross_entropy(model(x[index]), y[index]).backward()
                optimizer.step()
    return model.eval()


def draw(y: Tensor, kind: str, size: int, generator: torch.Generator) -> Tensor:
    """The images of a stream, with replacement; its classes are drawn too."""
    share = torch.zeros(10)
    order = torch.randperm(10, generator=generator)
    if kind == "balanced":
        share[:] = 1
    elif kind == "one95":
        share[:], share[order[0]] = 0.05 / 9, 0.95
    else:
        share[order[: int(kind)]] = 1
    return torch.multinomial((share / torch.bincount(y, minlength=10).clamp_min(1))[y], size, True, generator=generator)


@torch.no_grad()
def wrong(model: nn.Module, x: Tensor, y: Tensor, size: int = 256) -> Tensor:
    """Which samples are, in batches of a size."""
    return torch.cat([model(batch).argmax(1) for batch in x.split(size)]) != y


FIXED = ("early", "domain", "batch", "alpha")


def measure(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Errors in percent of the stored statistics, of every fixed choice and of the own one, and whether it harms."""
    stored = wrong(model, x, y)
    found = {"stored": 100 * float(stored.double().mean())}
    for mode in FIXED:
        asked = adapt(model, x.split(64), mode)
        found[mode] = 100 * float(wrong(model, x, y, 64).double().mean())
        asked.undo()
    result = adapt(model, x.split(64))
    difference = wrong(model, x, y).double() - stored.double()
    result.undo()
    found["auto"] = found["stored"] + 100 * float(difference.mean())
    error = 100 * float(difference.std()) / math.sqrt(len(x))
    harm = found["auto"] - found["stored"] - 2.6 * error > 1
    numbers = {name: round(value, 2) for name, value in found.items()}
    return {"errors": numbers, "standard_error": round(error, 2), "harm": harm, "mode": result.choice.mode}


def main() -> None:
    """Measure, add to the JSON, and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=("digits", "fashion"))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--models", nargs="+", default=["convolutions", "residual", "perceptron"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[10])
    parser.add_argument("--sizes", type=int, nargs="+", default=[320])
    parser.add_argument("--kinds", nargs="+", default=list(HELD))
    parser.add_argument("--severities", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("held.json"))
    arguments = parser.parse_args()
    train_x, train_y, test_x, test_y, how = load(arguments.data, arguments.folder, 10_000)
    for name, seed in itertools.product(arguments.models, arguments.seeds):
        model = train(name, train_x, train_y, seed, **how)
        generator = torch.Generator().manual_seed(seed)
        rows: list[dict[str, Any]] = []
        for size, stream in itertools.product(arguments.sizes, STREAMS):
            for kind, severity in [("clean", 0), *itertools.product(arguments.kinds, arguments.severities)]:
                index = draw(test_y, stream, size, generator)
                images, labels = corrupt(test_x[index], kind, severity, generator), test_y[index]
                for order in ("shuffled", "sorted") if severity in (0, 3) else ("shuffled",):
                    at = labels.argsort(stable=True) if order == "sorted" else torch.arange(size)
                    row = {"data": arguments.data, "model": name, "seed": seed, "kind": kind, "severity": severity}
                    row |= {"stream": stream, "size": size, "order": order} | measure(model, images[at], labels[at])
                    rows.append(row)
        before = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
        kept = {"torch": torch.__version__, "rows": before + rows}
        arguments.out.write_text(json.dumps(kept | {"summary": summary(kept["rows"])}) + "\n")
        print(name, seed, summary(rows), flush=True)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Harms with the 95 % limit of their share, and mean errors, by size of the stream and over all."""
    found: dict[str, Any] = {}
    for size in ("all", *sorted({row["size"] for row in rows})):
        part = [row for row in rows if size in ("all", row["size"])]
        clean = [row for row in part if row["kind"] == "clean"]
        corrupted = [row for row in part if row["kind"] != "clean" and row["order"] == "shuffled"]
        groups = {
            "clean": clean,
            "corrupted": corrupted,
            "balanced": [row for row in corrupted if row["stream"] == "balanced"],
            "skewed": [row for row in corrupted if row["stream"] != "balanced"],
            "sorted": [row for row in part if row["kind"] != "clean" and row["order"] == "sorted"],
        }
        found[str(size)] = {name: _group(group) for name, group in groups.items() if group}
    return found


def _group(rows: list[dict[str, Any]]) -> dict[str, Any]:
    harms = sum(row["harm"] for row in rows)
    errors = {name: mean(row["errors"][name] for row in rows) for name in rows[0]["errors"]}
    best = min((name for name in errors if name != "auto"), key=lambda name: errors[name])
    chosen = {mode: sum(row["mode"] == mode for row in rows) for mode in ("stored", "early", "domain")}
    return {
        "runs": len(rows),
        "harms": harms,
        "harm_limit": round(100 * upper(harms, len(rows)), 2),
        "errors": {name: round(value, 2) for name, value in errors.items()},
        "best": best,
        "beyond_best": round(errors["auto"] - errors[best], 2),
        "chosen": chosen,
    }


def upper(harms: int, runs: int) -> float:
    """The largest share of harms under which so few come in 2.5 % of cases (Clopper and Pearson), by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        share = (low + high) / 2
        few = sum(math.comb(runs, k) * share**k * (1 - share) ** (runs - k) for k in range(harms + 1))
        low, high = (share, high) if few > 0.025 else (low, share)
    return high


if __name__ == "__main__":
    main()
