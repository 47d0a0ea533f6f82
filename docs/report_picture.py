"""Draws the report of docs/report.md: a network with three wrong layers among 29. Needs Chromium.

    python docs/report_picture.py [FOLDER]

With a folder, the page goes there as report.html and no picture is drawn.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import batchnorm
from batchnorm.demo.data import load_digits

PICTURE = Path(__file__).parent / "images" / "report.png"
WRONG = ("blocks.3.1", "blocks.5.1", "blocks.9.4")


class Residual(nn.Module):
    """Fourteen blocks of two layers each, and a batch norm layer before them."""

    def __init__(self, inputs: int, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(inputs, width), nn.BatchNorm1d(width))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()),
                *(nn.Linear(width, width), nn.BatchNorm1d(width)),
            )
            for _ in range(14)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the ten digits."""
        x = self.stem(x.flatten(1))
        for block in self.blocks:
            x = x + block(x) / 4
        return self.head(x)


def report() -> Any:
    """Train on the embedded digits, give three layers statistics that are not theirs, and diagnose."""
    torch.manual_seed(0)
    digits = load_digits()
    x, y = digits.train_x, digits.train_y
    model = Residual(x[0].numel())
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(600):
        index = torch.randint(len(x), (64,))
        functional.cross_entropy(model(x[index]), y[index]).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name in WRONG:
        layer = model.get_submodule(name)
        layer.running_mean += 6 * torch.randn(32) * layer.running_var.sqrt()  # pyright: ignore
        layer.running_var /= 3  # pyright: ignore
    batches = list(zip(x[:1280].split(128), y[:1280].split(128), strict=True))
    return batchnorm.diagnose(
        model.eval(), batches, lambda output, batch: (output.argmax(1) == batch[1]).float().mean()
    )


def main() -> None:
    """Write the page, and draw it unless a folder was given."""
    with tempfile.TemporaryDirectory() as own:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else own)
        report().to_html(folder / "report.html")
        if len(sys.argv) > 1:
            return
        browser = shutil.which("chromium") or shutil.which("chromium-browser")
        if browser is None:
            raise SystemExit("needs Chromium: apt-get install chromium")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1100,1690"]
        command = [browser, *flags, f"--screenshot={PICTURE}", f"file://{folder}/report.html"]
        subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main()
