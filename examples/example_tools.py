"""What the examples share: the embedded digits, a small network, a training loop with a progress bar, a table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from batchnorm.demo.data import load_digits

CONSOLE = Console(force_jupyter=False, width=100)
DIGITS = load_digits()
# Images of 8 x 8 pixels are too little work for several threads.
torch.set_num_threads(1)


def network(momentum: float | None = 0.1, seed: int = 0) -> nn.Sequential:
    """Three convolutions with torch's batch norm, for digits `(N, 1, 8, 8)`."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 16), (16, 32), (32, 32)):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs, momentum=momentum), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if inputs == 1 else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def batches(steps: int, size: int = 64, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Training digits, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        pick = torch.randint(len(DIGITS.train_x), (size,), generator=generator)
        yield DIGITS.train_x[pick], DIGITS.train_y[pick]


def bar(items: range, about: str) -> Iterator[int]:
    """The items under a progress bar that is gone when they are."""
    return iter(track(items, about, console=CONSOLE, transient=True, disable=not CONSOLE.is_terminal))


def train(
    model: nn.Module,
    steps: int,
    size: int = 64,
    rate: float = 1e-2,
    seed: int = 0,
    about: str = "training",
    each: Callable[[int], object] | None = None,
) -> nn.Module:
    """Adam on random batches; `each(step)` runs after every step."""
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    drawn = batches(steps, size, seed)
    for step in bar(range(steps), about):
        x, y = next(drawn)
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if each is not None:
            each(step)
    return model


@torch.no_grad()
def error(model: nn.Module, x: Tensor = DIGITS.test_x, y: Tensor = DIGITS.test_y) -> float:
    """Percent wrong in eval mode."""
    return 100 * float((model.eval()(x).argmax(1) != y).float().mean())


def loader() -> list[Tensor]:
    """All training digits in batches, for recalibration."""
    return list(DIGITS.train_x.split(64))


def show(title: str, rows: dict[str, float], unit: str = "error, %") -> None:
    """A table of names and numbers."""
    CONSOLE.print(f"\n{title}", style="bold")
    table = Table("")
    table.add_column(unit, justify="right")
    for name, value in rows.items():
        table.add_row(name, f"{value:.4g}")
    CONSOLE.print(table)


def quick() -> bool:
    """Whether the script was called with --quick."""
    return "--quick" in sys.argv[1:]
