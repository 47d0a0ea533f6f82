"""Error of every mode of `adapt` on corrupted, clean and sorted streams; Fashion-MNIST is held out."""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corruptions import SEEN, UNSEEN, corrupt
from torch import Tensor, nn
from torch.nn import functional

from batchnorm.demo.data import load_digits
from batchnorm.models import adapt

STREAM = 500


def network(size: int, width: int) -> nn.Sequential:
    """Three convolutions with batch norm."""
    layers: list[nn.Module] = []
    for before, after, stride in ((1, width, 1), (width, 2 * width, 2), (2 * width, 2 * width, 1 if size < 20 else 2)):
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


def load(name: str, folder: Path | None) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, int]]:
    """Training images and labels, a test stream, and how to train."""
    if name == "digits":
        data = load_digits(STREAM)
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
    order = torch.randperm(len(parts[2]), generator=torch.Generator().manual_seed(0))[:STREAM]
    return parts[0], parts[1], parts[2][order], parts[3][order], {"epochs": 3, "batch": 128}


@torch.no_grad()
def error(model: nn.Module, x: Tensor, y: Tensor, size: int) -> float:
    """Percent wrong, in batches of a size."""
    guesses = torch.cat([model(batch).argmax(1) for batch in x.split(size)])
    return 100 * float((guesses != y).float().mean())


def contenders(x: Tensor) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """A name, the batch size of the stream, and the arguments of `adapt`."""
    yield "stored", 64, {"mode": "stored"}
    for n in (1, 2, 4, 8, 16, 32, 64):
        yield f"batch n={n}", n, {"mode": "batch"}
    for n in (4, 16, 64):
        yield f"prior 16 n={n}", n, {"mode": "prior"}
        yield f"alpha .5 n={n}", n, {"mode": "alpha"}
        yield f"running n={n}", n, {"mode": "running"}
    yield "example .1", 64, {"mode": "example"}
    yield "domain, all", 64, {"mode": "domain", "data": x.split(16)}
    yield "domain, first 128", 64, {"mode": "domain", "data": x[:128].split(16)}
    yield "auto, all", 64, {"data": x.split(16)}
    yield "auto, first 128", 64, {"data": x[:128].split(16)}
    yield "auto, first 32", 64, {"data": x[:32].split(16)}
    yield "auto, all, pool", 64, {"data": x.split(16), "if_sorted": "pool"}


def main() -> None:
    """Measure and keep the JSON; `tables.py` makes the tables of the documentation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=("digits", "fashion"))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    train_x, train_y, test_x, test_y, how = load(arguments.data, arguments.folder)
    kinds = SEEN if arguments.data == "digits" else (*SEEN, *UNSEEN)
    sorting = test_y.argsort(stable=True)
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        model = train(train_x, train_y, seed, **how)
        draw = torch.Generator().manual_seed(seed)
        for kind, severity in [("clean", 0), *((k, s) for k in kinds for s in range(1, 6))]:
            images = corrupt(test_x, kind, severity, draw)
            for stream, order in (("mixed", torch.arange(len(images))), ("sorted", sorting)):
                x, y = images[order], test_y[order]
                errors: dict[str, float] = {}
                choices: dict[str, str] = {}
                for name, size, options in contenders(x):
                    result = adapt(model, **options)
                    errors[name] = round(error(model, x, y, size), 2)
                    if name.startswith("auto"):
                        choices[name] = str(result.choice)
                    result.undo()
                row = {"seed": seed, "kind": kind, "severity": severity, "stream": stream}
                rows.append({**row, "errors": errors, "choices": choices})
                print(*row.values(), {k: errors[k] for k in ("stored", "batch n=16", "domain, all", "auto, all")})
    out = Path(__file__).with_name(f"{arguments.data}.json")
    result = {"torch": torch.__version__, "stream": STREAM, "rows": rows}
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
