"""A small network and its data, and what its statistics would be exactly."""

import copy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

DATA = torch.randn(96, 3, 6, 6, generator=torch.Generator().manual_seed(1)) * 2 + 1
LABELS = torch.arange(96) % 3


def network(norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), norm(4), nn.ReLU(), nn.Conv2d(4, 5, 3), norm(5), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3)
    )


def layers(model):
    return [m for m in model.modules() if isinstance(m, _BatchNorm)]


def statistics(model):
    return [s.detach().clone() for m in layers(model) for s in (m.running_mean, m.running_var)]


@torch.no_grad()
def received(model, call):
    """Mean and variance of what each layer receives in eval mode, in float64, layer by layer."""
    model = copy.deepcopy(model).eval()
    seen = {m: [] for m in layers(model)}
    handles = [m.register_forward_pre_hook(lambda m, args: seen[m].append(args[0].double())) for m in seen]
    call(model)
    for handle in handles:
        handle.remove()
    found = []
    for parts in seen.values():
        values = torch.cat(parts).transpose(0, 1).flatten(1)
        found += [values.mean(1), values.var(1)]
    return found


def close(a, b, tolerance=1e-4):
    return len(a) == len(b) > 0 and all(
        torch.allclose(x.double(), y.double(), rtol=tolerance, atol=tolerance) for x, y in zip(a, b, strict=True)
    )


def exact(model, call=None):
    """Whether every layer stores the moments of what it receives."""
    return close(statistics(model), received(model, call or (lambda m: m(DATA))))
