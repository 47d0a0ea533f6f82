"""Sequences with padding: what padding does to the statistics, and what lengths do about it.

python examples/padding.py [--quick]
"""

# %%
import torch
from torch import Tensor, nn
from torch.nn import functional

import batchnorm
from example_tools import DIGITS, bar, quick, show

# %% [markdown]
# A digit is read row by row, as a sequence of 8 steps with 8 values. Every third batch also holds four long sequences,
# so the other 60 are padded to 64 steps with zeros: most of that batch is padding. At inference there is none.

# %%
ROOMS = (8, 8, 64)


def padded(x: Tensor, room: int) -> tuple[Tensor, Tensor]:
    """Digits as sequences `(N, 8, room)` with their lengths; where there is room, some are repeated to be long."""
    lengths, out = torch.full((len(x),), 8), torch.zeros(len(x), 8, room)
    rows = 3 + 2 * x.squeeze(1)  # far from the zeros of the padding
    out[:, :, :8] = rows
    if room > 8:
        out[::16], lengths[::16] = rows[::16].repeat(1, 1, room // 8), room
    return out, lengths


class Reader(nn.Module):
    """A convolution over time, batch norm, the mean over the valid steps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(8, 32, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm1d(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Logits; the layer itself knows nothing of lengths unless it is told by `batchnorm.masked`."""
        valid = torch.arange(x.shape[2]) < lengths[:, None]
        hidden = self.norm(self.conv(x)).relu() * valid[:, None]
        return self.head(hidden.sum(2) / lengths[:, None])


def valid_steps(x: Tensor, lengths: Tensor) -> Tensor:
    """The mask `(N, L)`."""
    return torch.arange(x.shape[2]) < lengths[:, None]


# %%
def fit(model: Reader, steps: int, told: bool) -> dict[str, float]:
    """Train with the padding; test without."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in bar(range(steps), "with lengths" if told else "without lengths"):
        part = slice(64 * (step % 20), 64 * (step % 20) + 64)
        x, lengths = padded(DIGITS.train_x[part], ROOMS[step % 3])
        optimizer.zero_grad()
        if told:
            with batchnorm.masked(model, valid_steps(x, lengths)):
                output = model.train()(x, lengths)
        else:
            output = model.train()(x, lengths)
        functional.cross_entropy(output, DIGITS.train_y[part]).backward()
        optimizer.step()
    with torch.no_grad():
        x, lengths = padded(DIGITS.test_x, 8)
        wrong = model.eval()(x, lengths).argmax(1) != DIGITS.test_y
        real = model.conv(x).var((0, 2))
    ratio = float((model.norm.running_var / real).log().abs().mean().exp())
    return {"error": 100 * float(wrong.float().mean()), "variance off by": ratio}


def run(quick: bool = False) -> dict[str, float]:
    """Percent wrong without and with lengths."""
    steps = 60 if quick else 600
    plain = fit(Reader(), steps, told=False)
    told = fit(batchnorm.convert(Reader()), steps, told=True)
    show("Held-out digits", {"padding counted as data": plain["error"], "lengths given": told["error"]})
    off = "variance off by"
    show(
        "Stored variance against that of the data",
        {"padding counted": plain[off], "lengths given": told[off]},
        "factor",
    )
    return {"plain": plain["error"], "masked": told["error"], "plain factor": plain[off], "masked factor": told[off]}


# %%
if __name__ == "__main__":
    run(quick())
