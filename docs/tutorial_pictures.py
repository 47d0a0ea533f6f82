"""Draws the pictures of docs/tutorial.md from a real training run on the embedded digits.

    python docs/tutorial_pictures.py

The figures are computed here and nowhere else; tests/docs/test_tutorial.py holds the page to them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import batchnorm
from batchnorm.demo.data import Digits, load_digits

IMAGES = Path(__file__).parent / "images"
STEPS, BATCH = 120, 64
INK, GREY, BLUE, ORANGE = "#17191c", "#8a929b", "#1f5fa8", "#b3541e"


class Point(NamedTuple):
    """One step: the batch's mean of one channel, the two running means, and three accuracies on held-out digits."""

    step: int
    batch_mean: float
    running_slow: float
    running_fast: float
    by_batch: float
    by_slow: float
    by_fast: float


def network() -> nn.Sequential:
    """Two convolutions; the first batch norm layer is watched."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    layers = [*block(1, 16), nn.MaxPool2d(2), *block(16, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)]
    return nn.Sequential(*layers)


@torch.no_grad()
def accuracy(model: nn.Module, digits: Digits, train: bool) -> float:
    """Percent right, with the batch's statistics or with the stored ones; nothing moves."""
    model.train(train)
    with batchnorm.pause(model):
        found = 100 * float((model(digits.test_x).argmax(1) == digits.test_y).float().mean())
    model.train()
    return found


def follow(digits: Digits, steps: int = STEPS) -> tuple[list[Point], nn.Sequential]:
    """Train at momentum 0.01 beside a copy that shares weights and moves its statistics by 0.1."""
    torch.manual_seed(0)
    slow, fast = network(), network()
    for one, two in ((slow, 0.01), (fast, 0.1)):
        for layer in batchnorm.models.batch_norm_layers(one).values():
            layer.momentum = two
    for mine, theirs in zip(fast.modules(), slow.modules(), strict=True):
        for name, parameter in theirs.named_parameters(recurse=False):
            setattr(mine, name, parameter)
    optimizer = torch.optim.Adam(slow.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    points, watched = [], (slow[1], fast[1])
    for step in range(1, steps + 1):
        pick = torch.randint(len(digits.train_x), (BATCH,), generator=generator)
        x, y = digits.train_x[pick], digits.train_y[pick]
        with torch.no_grad():
            batch_mean = float(slow[0](x)[:, 0].mean())
            fast(x)
        loss = functional.cross_entropy(slow(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        means = [float(layer.running_mean[0]) for layer in watched]
        scores = accuracy(slow, digits, True), accuracy(slow, digits, False), accuracy(fast, digits, False)
        points.append(Point(step, batch_mean, *means, *scores))
    return points, slow


@torch.no_grad()
def outputs(model: nn.Sequential, digits: Digits, channels: int = 4) -> dict[str, Tensor]:
    """What the second layer hands on: by the batch, by the stored statistics, and by recalibrated ones."""

    def normalised() -> Tensor:
        hidden = model[:6](digits.test_x)[:, :channels].movedim(1, -1).flatten(0, -2)
        # Take weight and bias off: what is left has mean 0 and variance 1 if the statistics fit.
        layer: Any = model[5]
        return (hidden - layer.bias[:channels]) / layer.weight[:channels]

    model.train()
    with batchnorm.pause(model):
        found = {"train: the batch": normalised()}
    model.eval()
    found["eval: stored, momentum 0.01"] = normalised()
    batchnorm.recalibrate(model, digits.train_x.split(BATCH))
    found["eval: recalibrated"] = normalised()
    return found


def _lines(points: list[Point], names: dict[str, tuple[str, str]], title: str, y: str) -> Any:
    import altair

    rows = [
        {"step": p.step, "what": said, "value": getattr(p, name)} for p in points for name, (said, _) in names.items()
    ]
    said, colours = zip(*names.values(), strict=True)
    colour = altair.Color("what:N", title=None, scale=altair.Scale(domain=said, range=colours), legend=altair.Legend(
        orient="top", symbolStrokeWidth=3, labelLimit=400))  # fmt: skip
    base = altair.Chart(altair.Data(values=rows), title=altair.Title(title, anchor="start", fontSize=13))
    height = altair.Y("value:Q", title=y, scale=altair.Scale(zero=False))
    lines = base.mark_line(strokeWidth=2).encode(x=altair.X("step:Q", title="training step"), y=height, color=colour)
    return lines.properties(width=520, height=240)


def _histogram(name: str, values: Tensor) -> Any:
    import altair

    counts, edges = torch.histogram(values.flatten(), torch.linspace(-4, 4, 65))
    centres, share = (edges[1:] + edges[:-1]) / 2, counts / values.numel()
    rows = [{"at": float(at), "share": float(part)} for at, part in zip(centres, share, strict=True)]
    base = altair.Chart(altair.Data(values=rows), title=altair.Title(name, fontSize=12))
    return (
        base.mark_area(color=BLUE, interpolate="step")
        .encode(x=altair.X("at:Q", title="normalised value"), y=altair.Y("share:Q", title=None, axis=None))
        .properties(width=185, height=130)
    )


def draw(points: list[Point], found: dict[str, Tensor], folder: Path) -> None:
    """The three pictures."""
    import altair
    from PIL import Image

    dots = altair.Chart(altair.Data(values=[{"step": p.step, "value": p.batch_mean} for p in points]))
    dots = dots.mark_circle(color=GREY, size=18, opacity=1).encode(x="step:Q", y="value:Q")
    running = {"running_fast": ("running mean, momentum 0.1", BLUE), "running_slow": ("momentum 0.01", ORANGE)}
    title = "One channel: the mean of each batch (dots) and two running means"
    pictures = {"tutorial-running": dots + _lines(points, running, title, "mean")}
    scores = {
        "by_batch": ("normalised by the batch (train mode)", INK),
        "by_fast": ("by the running statistics, momentum 0.1", BLUE),
        "by_slow": ("momentum 0.01", ORANGE),
    }
    pictures["tutorial-accuracy"] = _lines(
        points, scores, "The same weights, three normalisers", "accuracy on held-out digits, %"
    )
    pictures["tutorial-outputs"] = altair.hconcat(*[_histogram(name, values) for name, values in found.items()])
    for name, picture in pictures.items():
        path = folder / f"{name}.png"
        picture.configure_view(stroke=None).save(path, scale_factor=1.5)
        # A few colours are all there is: a palette makes the file a fifth of its size.
        Image.open(path).convert("RGB").quantize(48).save(path, optimize=True)


def main() -> None:
    """Train, draw, and print the figures that the page quotes."""
    torch.set_num_threads(1)
    digits = load_digits()
    points, model = follow(digits)
    for step in (10, 40, STEPS):
        print(points[step - 1])
    found = outputs(model, digits)
    for name, values in found.items():
        print(
            name,
            "mean",
            [round(float(v), 2) for v in values.mean(0)],
            "var",
            [round(float(v), 2) for v in values.var(0)],
        )
    print("recalibrated", accuracy(model, digits, False))
    draw(points, found, IMAGES)


if __name__ == "__main__":
    main()
