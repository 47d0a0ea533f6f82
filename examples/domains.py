"""Domain banks: one network, two kinds of images, statistics for each.

python examples/domains.py [--quick]
"""

# %%
import torch
from torch import Tensor, nn
from torch.nn import functional

import batchnorm
from example_tools import DIGITS, bar, batches, error, network, quick, show

# %% [markdown]
# The second domain is the negative of the first: dark on light, with less contrast. Weights are shared; batches come
# from one domain at a time, as they do from one camera, hospital or client.


# %%
def negative(x: Tensor) -> Tensor:
    """The second domain."""
    return 1.5 - 0.8 * x


DOMAINS = {"scans": lambda x: x, "negatives": negative}


def fit(model: nn.Module, steps: int, banks: bool) -> nn.Module:
    """Alternate between the domains."""
    optimizer = torch.optim.Adam(model.train().parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    drawn = batches(2 * steps)
    for _ in bar(range(steps), "with banks" if banks else "shared statistics"):
        for name, change in DOMAINS.items():
            x, y = next(drawn)
            optimizer.zero_grad()
            if banks:
                with batchnorm.bank(model, name):
                    loss = functional.cross_entropy(model(change(x)), y)
            else:
                loss = functional.cross_entropy(model(change(x)), y)
            loss.backward()
            optimizer.step()
        schedule.step()
    return model


# %%
def run(quick: bool = False) -> dict[str, float]:
    """Percent wrong in each domain: shared statistics, banks, and a bank for a domain never trained on."""
    steps = 40 if quick else 250
    shared = fit(batchnorm.convert(network()), steps, banks=False)
    banked = fit(batchnorm.convert(network()), steps, banks=True)
    rows = {}
    for name, change in DOMAINS.items():
        x = change(DIGITS.test_x)
        rows[f"{name}, shared statistics"] = error(shared, x)
        with batchnorm.bank(banked, name):
            rows[f"{name}, its own bank"] = error(banked, x)
    # A third domain without a label: its statistics are measured, nothing is trained.
    x = 0.2 * DIGITS.test_x
    with batchnorm.bank(banked, "scans"):
        rows["faint scans, bank of the scans"] = error(banked, x)
    with batchnorm.bank(banked, "faint"):
        pass  # made, as a copy of the layers' own statistics
    batchnorm.recalibrate(banked, (0.2 * DIGITS.train_x).split(64), bank="faint", progress=False)
    with batchnorm.bank(banked, "faint"):
        rows["faint scans, bank measured on them"] = error(banked, x)
    show("Held-out digits", rows)
    with batchnorm.bank(banked, "scans"):
        before = banked.eval()(DIGITS.test_x[:8])
    stock = batchnorm.to_stock(banked, bank="scans").eval()
    return {**rows, "stock differs": float((stock(DIGITS.test_x[:8]) - before).detach().abs().max())}


# %%
if __name__ == "__main__":
    run(quick())
