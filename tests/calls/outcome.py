"""One call with one wrong argument: what it raised, and what it changed."""

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tests.calls import good


@dataclass
class Outcome:
    """The error, or None where the call worked; and what was not as before."""

    error: Exception | None
    changed: list[str]


def outcome(verb, argument, make):
    """Call a verb with one argument that make gives, the others as they should be."""
    arguments = {name: value() for name, value in verb.given.items()}
    arguments[argument] = make()
    modules = [value for value in arguments.values() if isinstance(value, nn.Module)]
    before = [*map(_module, modules), _surroundings()]
    error = None
    try:
        verb.call(**arguments)
    except Exception as raised:
        error = raised
    after = [*map(_module, modules), _surroundings()]
    return Outcome(error, [key for a, b in zip(before, after, strict=True) for key in a if a[key] != b.get(key)])


def _module(model):
    facts = {}
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        facts[f"{name} itself"] = (type(module), module.training, [list(h) for h in hooks], sorted(module.__dict__))
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        lazy = isinstance(value, nn.parameter.UninitializedTensorMixin)
        values = None if lazy or value.is_meta else value.detach().double().flatten().tolist()
        facts[name] = (value.requires_grad, value.dtype, str(values))
    return facts


def _surroundings():
    return {
        "torch's random numbers": torch.get_rng_state().tolist(),
        "python's random numbers": random.getstate(),
        "numpy's random numbers": str(np.random.get_state()),
        "whether gradients are taken": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "files": sorted(path.name for path in good.FOLDER.iterdir()),
    }
