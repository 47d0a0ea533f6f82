"""Merging: two networks halfway between, channels matched; their features cancel, and statistics bring them back.

python examples/merging.py [--quick]
"""

# %%
import copy

import torch
from torch import Tensor, nn

import batchnorm
from example_tools import DIGITS, error, quick, show, train

# %% [markdown]
# Two perceptrons, trained apart on the same digits. Their hidden units are in no common order, so each unit of the
# first is matched with the unit of the second whose outputs correlate with its own. Then weights are averaged. Without
# matching, features cancel: half of their variance is gone, and statistics that were averaged do not know.


# %%
def perceptron(seed: int, width: int = 64) -> nn.Sequential:
    """Two hidden layers with batch norm."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs in (64, width):
        layers += [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


@torch.no_grad()
def matched(one: Tensor, two: Tensor) -> Tensor:
    """For each column of one, the column of two that correlates most, each taken once, best pairs first."""
    one, two = ((x - x.mean(0)) / (x.std(0) + 1e-6) for x in (one, two))
    likeness = one.T @ two / len(one)
    order = torch.empty(likeness.shape[0], dtype=torch.long)
    for _ in range(len(order)):
        row, column = divmod(int(likeness.argmax()), likeness.shape[1])
        order[row] = column
        likeness[row], likeness[:, column] = -torch.inf, -torch.inf
    return order


@torch.no_grad()
def reordered(model: nn.Sequential, like: nn.Sequential) -> nn.Sequential:
    """The same function, its hidden units in the order of the other network."""
    model = copy.deepcopy(model).eval()
    for linear, norm, after in ((1, 2, 4), (4, 5, 7)):
        order = matched(like.eval()[: norm + 2](DIGITS.train_x), model[: norm + 2](DIGITS.train_x))
        for tensor in (*model[linear].state_dict().values(), *model[norm].state_dict().values()):
            if tensor.dim():
                tensor.copy_(tensor[order])
        model[after].weight.copy_(model[after].weight[:, order])
    return model


@torch.no_grad()
def halfway(one: nn.Module, two: nn.Module) -> nn.Module:
    """The average of weights and statistics."""
    model = copy.deepcopy(one)
    for target, other in zip(model.state_dict().values(), two.state_dict().values(), strict=True):
        if target.is_floating_point():
            target.lerp_(other, 0.5)
    return model


# %%
def run(quick: bool = False) -> dict[str, float]:
    """Percent wrong of the networks, of averages, and of averages with measured statistics; the mean over the pairs."""
    steps, pairs = (60, [(0, 1)]) if quick else (300, [(0, 1), (2, 3)])
    found: dict[str, list[float]] = {}
    for a, b in pairs:
        one, two = (train(perceptron(seed), steps, seed=seed, about=f"network {seed}") for seed in (a, b))
        found.setdefault("the two", []).append((error(one) + error(two)) / 2)
        for name, other in (("not matched", two), ("matched", reordered(two, one))):
            found.setdefault(f"order of {name}", []).append(error(other) - error(two))
            model = halfway(one, other)
            found.setdefault(f"average, {name}", []).append(error(model))
            averaged = model[2].running_var.clone()
            batchnorm.recalibrate(model, DIGITS.train_x.split(64), progress=False)
            found.setdefault(f"average, {name}, recalibrated", []).append(error(model))
            found.setdefault(f"variance, {name}", []).append(float((model[2].running_var / averaged).mean()))
    mean = {name: sum(values) / len(values) for name, values in found.items()}
    show("Held-out digits", {name: value for name, value in mean.items() if name.startswith(("the", "average"))})
    variances = {name: value for name, value in mean.items() if name.startswith("variance")}
    show("Variance in the first layer: what the average has / the average of what they had", variances, "ratio")
    return mean


# %%
if __name__ == "__main__":
    run(quick())
