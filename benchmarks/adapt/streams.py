"""What `adapt(model, data)` decides on streams whose classes are not those of the training, and what it costs.

Streams of 320 to 5,000 images: balanced, one class of 95 % or all, three classes, five classes; shuffled and sorted;
clean and corrupted. Harm is an error above that of the stored statistics by more than 1 point beyond 2.6 paired
standard errors.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from adapt import load, network
from corruptions import FRESH, LATEST, SEEN, UNSEEN, corrupt
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
def wrong(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which samples are."""
    return torch.cat([model(batch).argmax(1) for batch in x.split(256)]) != y


def measure(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Errors in percent of the stored statistics, of those of all the data and of the choice, and whether it harms."""
    stored = wrong(model, x, y)
    found = {"stored": 100 * float(stored.double().mean())}
    whole = adapt(model, x.split(64), "domain")
    found["domain"] = 100 * float(wrong(model, x, y).double().mean())
    whole.undo()
    result = adapt(model, x.split(64))
    difference = wrong(model, x, y).double() - stored.double()
    result.undo()
    found["auto"] = found["stored"] + 100 * float(difference.mean())
    error = 100 * float(difference.std()) / math.sqrt(len(x))
    harm = found["auto"] - found["stored"] - 2.6 * error > 1
    numbers = {name: round(value, 2) for name, value in found.items()}
    return {"errors": numbers, "standard_error": round(error, 2), "harm": harm, "choice": str(result.choice)}


def main() -> None:
    """Measure and keep the JSON; print the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=("digits", "fashion"))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--models", nargs="+", default=["convolutions", "residual", "perceptron"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[10])
    parser.add_argument("--sizes", type=int, nargs="+", default=[320])
    parser.add_argument("--kinds", nargs="+", default=[*SEEN, *UNSEEN, *FRESH, *LATEST])
    parser.add_argument("--severities", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--out", type=Path, help="beside this script unless given")
    arguments = parser.parse_args()
    train_x, train_y, test_x, test_y, how = load(arguments.data, arguments.folder)
    rows: list[dict[str, Any]] = []
    for name in arguments.models:
        for seed in arguments.seeds:
            model = train(name, train_x, train_y, seed, **how)
            generator = torch.Generator().manual_seed(seed)
            for kind, severity in [("clean", 0), *((k, s) for k in arguments.kinds for s in arguments.severities)]:
                images = corrupt(test_x, kind, severity, generator)
                for stream in STREAMS:
                    for size in arguments.sizes:
                        index = draw(test_y, stream, size, generator)
                        for order in ("shuffled", "sorted") if kind == "clean" else ("shuffled",):
                            index = index[test_y[index].argsort(stable=True)] if order == "sorted" else index
                            row = {"model": name, "seed": seed, "kind": kind, "severity": severity, "stream": stream}
                            row |= {"size": size, "order": order} | measure(model, images[index], test_y[index])
                            rows.append(row)
            out = arguments.out or Path(__file__).with_name(f"streams-{arguments.data}.json")
            out.write_text(json.dumps({"torch": torch.__version__, "rows": rows}) + "\n")
            print(name, seed, summary([r for r in rows if r["model"] == name and r["seed"] == seed]), flush=True)


def summary(rows: list[dict[str, Any]]) -> str:
    """Harms on clean and on corrupted streams, and mean errors on balanced corrupted ones."""
    clean = [row for row in rows if row["kind"] == "clean"]
    corrupted = [row for row in rows if row["kind"] != "clean"]
    parts = [f"harm: clean {sum(r['harm'] for r in clean)} of {len(clean)}"]
    parts.append(f"corrupted {sum(r['harm'] for r in corrupted)} of {len(corrupted)}")
    for label, kinds in (("seen", SEEN), ("unseen", UNSEEN), ("fresh", FRESH), ("latest", LATEST)):
        part = [row["errors"] for row in corrupted if row["kind"] in kinds and row["stream"] == "balanced"]
        if part:
            parts.append(label + " " + ", ".join(f"{k} {mean(e[k] for e in part):.1f}" for k in part[0]))
    return "; ".join(parts)


if __name__ == "__main__":
    main()
