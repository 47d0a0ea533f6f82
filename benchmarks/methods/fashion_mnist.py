"""Online Normalization's published Fashion-MNIST row, repeated on the full set.

The set-up is that of the authors' experiment: a 784-500-300-10 perceptron without biases,
normalised before each of its two ReLUs, Xavier uniform weights, pixels in [0, 1], batches of 32,
plain SGD at 0.04 with weight decay 1e-4 on the linear weights only, 10 epochs, the last partial
batch dropped, decays .999 and .99, layer scaling.

Source: github.com/Cerebras/online-normalization at fe08b9f, experiments/mlp (set-up) and
experiments/ExpReproducibility.md (figures).
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional

import batchnorm

EPOCHS, BATCH, RATE, DECAY = 10, 32, 0.04, 1e-4
BEST_EPOCH = 9  # Of the published median curves, for all four rows; counted from 0 or 1 the source does not say.
PUBLISHED = {
    "source": "Cerebras/online-normalization fe08b9f, experiments/ExpReproducibility.md, 400 runs a row",
    "mean": {"online": 88.8, "batchnorm": 88.6, "layernorm": 88.2, "none": 88.1},
    "median": {"online": 88.9, "batchnorm": 88.8, "layernorm": 88.3, "none": 88.2},
    "sd": {"online": 0.53, "batchnorm": 0.58, "layernorm": 0.60, "none": 0.52},
}
DIFFERENCES = [
    "online is this package's layer (method='online' with layer scaling) in place of the authors' extension",
    "the order of the samples comes from torch.randperm, one order for all methods of a seed",
    "the last epoch and the published best epoch are both reported; the published figure is of the best one",
    "float32 on one CPU thread, which other work shared: the seconds of a run are no measure of cost",
]
PACKAGE = "dataset-fashion-mnist"
INSIDE = "usr/share/datasets/fashion-mnist"


class Data(NamedTuple):
    """Pixels `(N, 784)` in [0, 1] and labels `(N,)`."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def cache_folder() -> Path:
    """Where the data set is kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "batchnorm" / "fashion-mnist"


def download(folder: Path) -> None:
    """Put the four files of the Debian package in a folder; no root is needed."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            sys.exit(f"Fashion-MNIST comes from the Debian package {PACKAGE}, which needs {tool}; it was not found.")
    with tempfile.TemporaryDirectory() as temporary:
        try:
            command = ["apt-get", "download", PACKAGE]
            subprocess.run(command, cwd=temporary, check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
            sys.exit(f"Fashion-MNIST comes from the Debian package {PACKAGE}, which could not be fetched: {reason}")
        (archive,) = Path(temporary).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, temporary], check=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(Path(temporary) / INSIDE, folder, dirs_exist_ok=True)


def load(folder: Path) -> Data:
    """The full set, fetched when it is not there yet."""
    names = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    if not all((folder / name).exists() for name in names):
        download(folder)
    arrays = []
    for name, header in zip(names, (16, 8, 16, 8), strict=True):
        with gzip.open(folder / name) as file:
            arrays.append(torch.from_numpy(np.frombuffer(file.read(), np.uint8, offset=header).copy()))
    train_x, train_y, test_x, test_y = arrays
    return Data(train_x.view(-1, 784) / 255, train_y.long(), test_x.view(-1, 784) / 255, test_y.long())


def online(channels: int) -> nn.Module:
    """The published row's layer: decays .999 and .99, layer scaling instead of the clamp."""
    coupling = batchnorm.layers.OnlineNorm(backward_decay=0.99, clamp=None, layer_scaling=True)
    return batchnorm.BatchNorm1d(channels, method="online", coupling=coupling)


def online_clamped(channels: int) -> nn.Module:
    """Online with the clamp, the default of the released layer and of this package."""
    return batchnorm.BatchNorm1d(channels, method="online")


def no_norm(channels: int) -> nn.Module:
    """Nothing."""
    return nn.Identity()


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "online": online,
    "batchnorm": batchnorm.BatchNorm1d,
    "layernorm": nn.LayerNorm,
    "none": no_norm,
    "online-clamped": online_clamped,
}


def perceptron(norm: Callable[[int], nn.Module]) -> nn.Sequential:
    """784-500-300-10, no biases but those of the norms."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((784, 500), (500, 300)):
        layers += [nn.Linear(inputs, outputs, bias=False), norm(outputs), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(300, 10, bias=False))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    return model


def sgd(model: nn.Module) -> torch.optim.SGD:
    """Weight decay on the linear weights, none on scales and shifts."""
    linear = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    held = {id(p) for p in linear}
    rest = [p for p in model.parameters() if id(p) not in held]
    groups = [{"params": linear}, *([{"params": rest, "weight_decay": 0.0}] if rest else [])]
    return torch.optim.SGD(groups, lr=RATE, weight_decay=DECAY)


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """Percent right on the test set, in eval mode."""
    was = model.training
    hits = (model.eval()(data.test_x).argmax(1) == data.test_y).float().mean()
    model.train(was)
    return round(100 * float(hits), 2)


def run(name: str, seed: int, data: Data, epochs: int, after_epoch: Callable[[], None]) -> dict[str, Any]:
    """One training run: the test accuracy after every epoch."""
    torch.manual_seed(seed)
    model = perceptron(NORMS[name]).train()
    optimizer = sgd(model)
    order = torch.Generator().manual_seed(seed)
    curve: list[float] = []
    start = time.perf_counter()
    for _ in range(epochs):
        steps = len(data.train_x) // BATCH
        for pick in torch.randperm(len(data.train_x), generator=order)[: steps * BATCH].split(BATCH):
            loss = functional.cross_entropy(model(data.train_x[pick]), data.train_y[pick])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        curve.append(accuracy(model, data))
        after_epoch()
    seconds = time.perf_counter() - start
    return {"method": name, "seed": seed, "accuracy": curve, "seconds": round(seconds, 1)}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Each method's mean, standard deviation and standard error at the last and at the published epoch."""
    found: dict[str, Any] = {}
    for name in NORMS:
        curves = [run["accuracy"] for run in runs if run["method"] == name]
        if not curves:
            continue
        found[name] = {"runs": len(curves)}
        for label, epoch in (("last", len(curves[0])), ("published_epoch", min(BEST_EPOCH, len(curves[0])))):
            values = [curve[epoch - 1] for curve in curves]
            sd = statistics.stdev(values) if len(values) > 1 else math.nan
            figures = {"mean": statistics.fmean(values), "sd": sd, "se": sd / math.sqrt(len(values))}
            figures = {key: None if math.isnan(value) else round(value, 3) for key, value in figures.items()}
            found[name][label] = figures
    return found


def keep(runs: list[dict[str, Any]], out: Path) -> None:
    """Write what is done so far."""
    set_up = {"epochs": EPOCHS, "batch": BATCH, "learning_rate": RATE, "weight_decay": DECAY}
    result = {
        "torch": torch.__version__,
        "set_up": set_up,
        "published": PUBLISHED,
        "differences": DIFFERENCES,
        "summary": summary(runs),
        "runs": runs,
    }
    new = out.with_suffix(".part")
    new.write_text(json.dumps(result, indent=1) + "\n")
    new.replace(out)


def main() -> None:
    """Train every method with every seed, keeping each run as it ends; runs already kept are not repeated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", choices=NORMS, default=list(NORMS)[:4])
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run after this long")
    parser.add_argument("--data", type=Path, default=cache_folder())
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load(arguments.data)
    runs = json.loads(arguments.out.read_text())["runs"] if arguments.out.exists() else []
    done = {(run["method"], run["seed"]) for run in runs}
    todo = [(name, seed) for seed in range(arguments.seeds) for name in arguments.methods]
    todo = [pair for pair in todo if pair not in done]
    deadline = time.monotonic() + 60 * arguments.minutes
    with Progress() as progress:
        bar = progress.add_task("", total=len(todo) * EPOCHS)
        for name, seed in todo:
            if time.monotonic() > deadline:
                break
            progress.update(bar, description=f"{name}, seed {seed}")
            runs.append(run(name, seed, data, EPOCHS, lambda: progress.advance(bar)))
            keep(runs, arguments.out)
    for name, row in summary(runs).items():
        print(name, row)


if __name__ == "__main__":
    main()
