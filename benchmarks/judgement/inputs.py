"""What is said of evaluation inputs alone, without a model: kinds of changes with parameters drawn by seed, and splits.

    PYTHONPATH=src:benchmarks python -m judgement.inputs [--first 0] [--seeds 10] [--json FILE]

A case is right if the message holds one of the kind's words; a natural split, if nothing is said.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from batchnorm.diagnosis.experiments.class_shares import other_shares
from batchnorm.diagnosis.experiments.differing import difference
from batchnorm.diagnosis.experiments.sample import Sample
from judgement.differing import accelerations, photographs, table
from judgement.run import interval

Random = np.random.Generator


def motion(x: Tensor, r: Random) -> Tensor:
    """A line of 3 to 9 positions in one of four directions, and in half of the cases noise of the sensor."""
    length, way = int(r.choice([3, 5, 7, 9])), int(r.integers(4))
    line = torch.zeros(length, length)
    at = torch.arange(length)
    line[[at * 0 + length // 2, at, at, at][way], [at, at, at * 0 + length // 2, at.flip(0)][way]] = 1 / length
    channels = x.shape[1]
    padded = functional.pad(x, [length // 2] * 4, mode="reflect")
    x = functional.conv2d(padded, line.expand(channels, 1, -1, -1), groups=channels)
    return x + float(r.choice([0, 0.05])) * torch.randn_like(x)


def swapped(x: Tensor, r: Random) -> Tensor:
    orders = [[2, 1, 0], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1]]
    return x[:, orders[r.integers(len(orders))]]


def missing(x: Tensor, r: Random) -> Tensor:
    """5 to 30 % of the cells, in all columns or in some, hold one value."""
    value, share = float(r.choice([-999, -1, 0, 9999])), r.uniform(0.05, 0.3)
    columns = torch.tensor(r.uniform(size=x.shape[1]) < r.choice([0.4, 1.0]))
    columns[r.integers(len(columns))] = True
    return torch.where((torch.rand_like(x) < share) & columns, value, x)


def part(x: Tensor, r: Random) -> Tensor:
    """20 to 80 % of the samples are in other units."""
    which = torch.rand(len(x)).view(-1, *[1] * (x.dim() - 1)) < r.uniform(0.2, 0.8)
    return torch.where(which, x * float(r.choice([255, 100, 1000, 0.01])), x)


def own_gain(x: Tensor, r: Random) -> Tensor:
    gain = (r.uniform(0.6, 1.5) * torch.randn(len(x))).exp()
    return x * gain.view(-1, *[1] * (x.dim() - 1))


def columns(x: Tensor, r: Random) -> Tensor:
    """One to four columns in other units."""
    x = x.clone()
    for column in r.permutation(x.shape[1])[: r.integers(1, 5)]:
        x[:, column] *= float(r.choice([1000, 100, 2.54, 0.01]))
    return x


def pitch(x: Tensor, r: Random) -> Tensor:
    rate = float(r.choice([0.5, 0.6, 0.7, 1.4, 1.6, 2.0]))
    longer = functional.interpolate(x, scale_factor=1 / rate, mode="linear", align_corners=False)
    return torch.cat([longer, longer.flip(2), longer], 2)[..., : x.shape[2]]


def compressed(x: Tensor, r: Random) -> Tensor:
    """JPEG of quality 3 to 20."""
    from PIL import Image

    quality, found = int(r.integers(3, 21)), []
    for image in (x.clamp(0, 1) * 255).byte():
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
        found.append(torch.tensor(np.array(Image.open(file))).permute(2, 0, 1) / 255)
    return torch.stack(found)


def cut(x: Tensor, r: Random) -> Tensor:
    """The middle, in its own size."""
    size = int(r.integers(x.shape[2] // 2, x.shape[2] - 3))
    start = (x.shape[2] - size) // 2
    return x[..., start : start + size, start : start + size] if x.dim() == 4 else x[..., start : start + size]


def resized(x: Tensor, r: Random) -> Tensor:
    size = int(x.shape[2] * r.choice([0.5, 0.6, 1.5, 2]))
    return functional.interpolate(x, size=size, mode="linear" if x.dim() == 3 else "bilinear", align_corners=False)


def enlarged(x: Tensor, r: Random) -> Tensor:
    """Objects in the middle, taken from 1.3 to 2.5 times as near."""
    size = int(x.shape[2] / r.uniform(1.3, 2.5))
    start = (x.shape[2] - size) // 2
    middle = x[..., start : start + size, start : start + size]
    return functional.interpolate(middle, size=x.shape[2], mode="bilinear", align_corners=False)


def same(x: Tensor, r: Random) -> Tensor:
    return x


def digits(seed: int) -> Any:
    """Handwritten digits on 16 x 16 positions, moved by up to two."""
    from sklearn.datasets import load_digits

    from judgement.tasks import Task

    images, y = load_digits(return_X_y=True)
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=g)
    x = functional.interpolate(torch.tensor(images).float().view(-1, 1, 8, 8)[order] / 16, size=16, mode="bilinear")
    moves = torch.randint(-2, 3, (len(x), 2), generator=g).tolist()
    x = torch.stack([image.roll(move, (1, 2)) for image, move in zip(x, moves, strict=True)])
    x, y = x + 0.05 * torch.randn(x.shape, generator=g), torch.tensor(y)[order]
    return Task(x[:1200], y[:1200], x[1200:], y[1200:], x[:0], y[:0], lambda: None)


def large(seed: int) -> Any:
    """Patches of 32 x 32."""
    return photographs(seed, 32)


KINDS: list[tuple[str, Callable[[int], Any], Callable[[Tensor, Random], Tensor], tuple[str, ...]]] = [
    ("motion blur", large, motion, ("smeared",)),
    ("channels exchanged", photographs, swapped, ("another order",)),
    ("cells missing", table, missing, ("missing values",)),
    ("a part of the images in other units", digits, part, ("of the evaluation samples lie outside",)),
    ("a part of the rows in other units", table, part, ("of the evaluation samples lie outside",)),
    ("a part of the signals in other units", accelerations, part, ("of the evaluation samples lie outside",)),
    ("a gain of its own for each image", digits, own_gain, ("every evaluation sample has a scale",)),
    ("a gain of its own for each signal", accelerations, own_gain, ("every evaluation sample has a scale",)),
    ("some columns in other units", table, columns, ("of the evaluation inputs column",)),
    ("another pitch", accelerations, pitch, ("times as fast",)),
    ("JPEG", large, compressed, ("compressed (JPEG)",)),
    ("signals cut", accelerations, cut, ("cut to another size",)),
    ("signals resampled", accelerations, resized, ("resized or resampled",)),
    ("images cut", photographs, cut, ("cut to another size",)),
    ("images resized", photographs, resized, ("resized or resampled",)),
    ("taken from nearer", digits, enlarged, ("everything about larger",)),
    ("photographs alike", photographs, same, ()),
    ("larger photographs alike", large, same, ()),
    ("digits alike", digits, same, ()),
    ("tables alike", table, same, ()),
    ("signals alike", accelerations, same, ()),
]


def sampled(x: Tensor, y: Tensor, classes: int) -> Sample:
    """As `diagnose` takes note of batches, for a model that predicts the label."""
    sample = Sample()
    for inputs, labels in zip(x.split(64), y.split(64), strict=True):
        sample.add((inputs, labels), functional.one_hot(labels, classes).float())
    return sample


def case(name: str, data: Callable[[int], Any], change: Any, words: tuple[str, ...], seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    task = data(seed)
    classes = int(task.y.max()) + 1
    changed = change(task.eval_x, np.random.default_rng(seed))
    found = difference(sampled(task.x, task.y, classes), sampled(changed, task.eval_y, classes))
    right = any(word in found.words for word in words) if words else not found.words
    return {"name": name, "seed": seed, "said": found.words[:200], "right": right}


def prior(seed: int) -> dict[str, Any]:
    """Training classes fall off; those of the evaluation are even. Found if the labels' shares are seen to differ."""
    task = photographs(seed)
    r = np.random.default_rng(seed)
    weight = r.uniform(0.3, 0.7) ** np.arange(6)[r.permutation(6)]
    chance = weight[task.y.numpy()]
    rows = torch.as_tensor(r.choice(len(task.y), 600, replace=False, p=chance / chance.sum()))
    pair = sampled(task.x[rows], task.y[rows], 6), sampled(task.eval_x, task.eval_y, 6)
    found = difference(*pair)
    right = other_shares(*pair) is not None and (found.by_class or not found.words)
    return {"name": "other shares of the classes", "seed": seed, "said": found.words[:200], "right": right}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(options.first, options.first + options.seeds)
    figures, rows = {}, []
    for name, *rest in [*KINDS, ("other shares of the classes",)]:
        found = [case(name, *rest, seed) if rest else prior(seed) for seed in seeds]
        good = sum(row["right"] for row in found)
        figures[name] = {"right": f"{good} of {len(found)}", "interval": interval(good, len(found))}
        print(
            name,
            figures[name],
            *(f"\n    {row['seed']} {row['said']}" for row in found if not row["right"]),
            flush=True,
        )
        rows += found
    if options.json:
        options.json.write_text(json.dumps({"figures": figures, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
