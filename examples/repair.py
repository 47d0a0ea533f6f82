"""Repair a broken model: good in train mode, at chance in eval mode; named, repaired, measured again.

python examples/repair.py [--quick]
"""

# %%
import torch
from torch import Tensor

import batchnorm
from example_tools import CONSOLE, DIGITS, error, loader, network, quick, show, train

# %% [markdown]
# Momentum 0.01 is Keras' 0.99, and 40 steps are few: two thirds of the initial statistics are left.


# %%
def accuracy(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """What `diagnose` compares under each choice of statistics."""
    return (output.argmax(1) == batch[1]).float().mean()


@torch.no_grad()
def error_with_the_batch(model: torch.nn.Module) -> float:
    """Percent wrong in train mode; nothing moves."""
    model.train()
    with batchnorm.pause(model):
        wrong = model(DIGITS.test_x).argmax(1) != DIGITS.test_y
    return 100 * float(wrong.float().mean())


# %%
def run(quick: bool = False) -> dict[str, float]:
    """The error before and after, and what the diagnosis says."""
    model = train(network(momentum=0.01), 20 if quick else 40)
    rows = {"train mode: the batch": error_with_the_batch(model), "eval mode, as trained": error(model)}

    labelled = list(zip(loader(), DIGITS.train_y.split(64), strict=True))
    report = batchnorm.diagnose(model, labelled, accuracy)
    CONSOLE.print(f"{report.findings[0].code}: {report.findings[0].message}.")

    result = batchnorm.recalibrate(model, loader(), progress=False)
    rows["eval mode, recalibrated"] = error(model)
    after = batchnorm.diagnose(model, labelled, accuracy)
    CONSOLE.print(f"After batchnorm.recalibrate: {after.verdict}.")

    result.undo()
    rows["undone"] = error(model)
    show("Held-out digits", rows)
    batch, stored, repaired, undone = rows.values()
    return {"batch": batch, "stored": stored, "repaired": repaired, "undone": undone,
            "named": float(report.findings[0].code == "BN108"), "ok": float(after.ok)}  # fmt: skip


# %%
if __name__ == "__main__":
    run(quick())
