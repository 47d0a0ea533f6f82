"""Error of every mode of `adapt` on corrupted, clean and sorted streams; Fashion-MNIST is held out."""

from __future__ import annotations

import argparse
import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corruptions import SEEN, UNSEEN, corrupt
from torch import Tensor, nn
from torch.nn import functional

from batchnorm.demo.data import load_digits
from batchnorm.layers import Mixture
from batchnorm.models import adapt, batch_norm_layers, unadapt
from batchnorm.models.adapting.layers import begin

STREAM = 512


@dataclass(frozen=True)
class Batches(Mixture):
    """Mixture over batches of a size, as groups of one forward: what a loop over batches gives, sooner."""

    size: int = 1

    def groups(self, samples: int) -> int:
        """As many as there are batches."""
        return samples // self.size


def network(size: int, width: int) -> nn.Sequential:
    """Three convolutions with batch norm; larger images are halved once more, at the start."""
    layers: list[nn.Module] = []
    for before, after, stride in ((1, width, 1 if size < 20 else 2), (width, 2 * width, 2), (2 * width, 2 * width, 1)):
        layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))


def train(x: Tensor, y: Tensor, seed: int, epochs: int, batch: int) -> nn.Sequential:
    """Adam with a falling rate."""
    torch.manual_seed(seed)
    model = network(x.shape[-1], 16)
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


def load(name: str, folder: Path | None, stream: int = STREAM) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, int]]:
    """Training images and labels, a test stream, and how to train."""
    if name == "digits":
        data = load_digits(min(stream, STREAM))
        return *data, {"epochs": 15, "batch": 64}
    if folder is None:
        raise SystemExit("--folder must hold the four files of Fashion-MNIST (Debian: dataset-fashion-mnist)")

    def read(file: str, skip: int) -> np.ndarray[Any, Any]:
        return np.frombuffer(gzip.decompress((folder / f"{file}.gz").read_bytes()), np.uint8, offset=skip)

    parts: list[Tensor] = []
    for part in ("train", "t10k"):
        parts.append(
            torch.from_numpy(read(f"{part}-images-idx3-ubyte", 16).reshape(-1, 1, 28, 28).copy()).float() / 255
        )
        parts.append(torch.from_numpy(read(f"{part}-labels-idx1-ubyte", 8).copy()).long())
    order = torch.randperm(len(parts[2]), generator=torch.Generator().manual_seed(0))[:stream]
    return parts[0][:10000], parts[1][:10000], parts[2][order], parts[3][order], {"epochs": 3, "batch": 128}


@torch.no_grad()
def error(model: nn.Module, x: Tensor, y: Tensor, size: int = STREAM) -> float:
    """Percent wrong, in batches of a size."""
    guesses = torch.cat([model(batch).argmax(1) for batch in x.split(size)])
    return 100 * float((guesses != y).float().mean())


def fixed(model: nn.Module, x: Tensor, y: Tensor, few: bool) -> dict[str, float]:
    """The error of every choice that a user could make beforehand, or of some of them."""
    found = {"stored": error(model, x, y)}
    rules: dict[str, Batches] = {}
    for n in (1, 4, 16, 64) if few else (1, 2, 4, 8, 16, 32, 64):
        rules[f"batch n={n}"] = Batches(weight=1.0, per="batch", size=n)
    for n in (16,) if few else (1, 4, 16, 64):
        rules[f"prior 16 n={n}"] = Batches(prior=16.0, per="batch", size=n)
        rules[f"alpha .5 n={n}"] = Batches(weight=0.5, per="batch", size=n)
    rules["example .1"] = Batches(weight=0.1, per="batch", size=1)
    layers = batch_norm_layers(model).values()
    for name, rule in rules.items():
        for layer in layers:
            begin(layer, rule)
        found[name] = error(model, x, y)
    unadapt(model)
    for n in () if few else (16, 64):
        adapt(model, mode="running")
        found[f"running 64 n={n}"] = error(model, x, y, n)
        unadapt(model)
    for name, part in (("domain, all", x), ("domain, first 128", x[:128]))[: 1 if few else 2]:
        adapt(model, part.split(128), "domain")
        found[name] = error(model, x, y)
        unadapt(model)
    return found


def automatic(model: nn.Module, x: Tensor, y: Tensor, few: bool) -> tuple[dict[str, float], dict[str, str]]:
    """The error of what `adapt` chooses by itself, and its reasons."""
    found: dict[str, float] = {}
    choices: dict[str, str] = {}
    ways = (
        ("auto, all", x, "refuse"),
        ("auto, first 128", x[:128], "refuse"),
        ("auto, first 32", x[:32], "refuse"),
        ("auto, all, pool", x, "pool"),
    )
    for name, part, if_sorted in ways[:2] if few else ways:
        result = adapt(model, part.split(128), if_sorted=if_sorted)
        found[name], choices[name] = error(model, x, y), str(result.choice)
        result.undo()
    return found, choices


def main() -> None:
    """Measure and keep the JSON; `tables.py` makes the tables of the documentation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=("digits", "fashion"))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--few", action="store_true", help="half the stream, fewer choices, for a busy machine")
    parser.add_argument("--out", type=Path, help="beside this script unless given")
    arguments = parser.parse_args()
    train_x, train_y, test_x, test_y, how = load(arguments.data, arguments.folder)
    if arguments.few:
        test_x, test_y = test_x[: STREAM // 2], test_y[: STREAM // 2]
    kinds = SEEN if arguments.data == "digits" else (*SEEN, *UNSEEN)
    sorting = test_y.argsort(stable=True)
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        model = train(train_x, train_y, seed, **how)
        draw = torch.Generator().manual_seed(seed)
        for kind, severity in [("clean", 0), *((k, s) for s in (3, 1, 5, 2, 4) for k in kinds)]:
            images = corrupt(test_x, kind, severity, draw)
            streams = {"mixed": torch.arange(len(images)), "sorted": sorting}
            if arguments.few and severity not in (0, 3):
                del streams["sorted"]
            for stream, order in streams.items():
                x, y = images[order], test_y[order]
                errors = fixed(model, x, y, arguments.few)
                chosen, choices = automatic(model, x, y, arguments.few)
                errors = {name: round(value, 2) for name, value in {**errors, **chosen}.items()}
                row = {"seed": seed, "kind": kind, "severity": severity, "stream": stream}
                rows.append({**row, "errors": errors, "choices": choices})
                print(
                    *row.values(),
                    {k: errors[k] for k in ("stored", "batch n=16", "domain, all", "auto, all")},
                    flush=True,
                )
            rows.sort(key=lambda row: (row["seed"], row["stream"], row["kind"], row["severity"]))
            out = arguments.out or Path(__file__).with_name(f"{arguments.data}.json")
            out.write_text(json.dumps({"torch": torch.__version__, "stream": len(test_x), "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
