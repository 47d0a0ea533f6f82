"""The path of a layer in the model that called it, for error messages."""

from __future__ import annotations

import sys

import torch
from torch import nn


def describe(layer: nn.Module) -> str:
    """The layer's name in the outermost module whose forward is on the call stack, and its repr.

    A layer does not know its parents. When it has to complain, the modules that called it are on
    the stack, and the outermost of them knows the path.
    """
    root: nn.Module | None = None
    # A compiler does not follow frames.
    frame = None if torch.compiler.is_compiling() else sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, nn.Module):
            root = caller
        frame = frame.f_back
    if root is not None and root is not layer:
        for name, module in root.named_modules():
            if module is layer:
                return f"layer {name!r} ({type(layer).__name__})"
    return f"layer {type(layer).__name__}({getattr(layer, 'num_features', '?')})"
