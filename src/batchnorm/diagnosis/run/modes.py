"""Which part of a model ran in train or eval, with or without gradients, in the step at hand; and who trains it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

MOST = 4096  # values of a parameter that are compared


class Tally:
    """A layer's calls since the last step ended.

    batch: in train mode with gradients. stored: in eval, with gradients that train something. eval: in eval with
    gradients, whether or not they do. whole: of stored, those where the called part was in eval as a whole.
    """

    __slots__ = ("batch", "eval", "stored", "whole")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Start a step."""
        self.batch = self.stored = self.eval = self.whole = 0

    @property
    def mode(self) -> str:
        """Of the step; empty if the layer was not called with gradients."""
        return "train" if self.batch else "eval" if self.eval else ""


class Owner:
    """Whether an optimizer trains a layer, or what stands before it; and whether anything else does."""

    def __init__(self, module: _BatchNorm, parent: nn.Module) -> None:
        self.module, self.parent = module, parent
        self._reference = _probe(module, parent)

    def trained_by(self, held: set[int]) -> bool:
        """Whether the optimizer that holds these parameters has the layer's own, or its neighbours' if it has none."""
        own = [p for p in (self.module.weight, self.module.bias) if p is not None and p.requires_grad]
        return any(id(p) in held for p in own or self.parent.parameters() if p.requires_grad)

    def changed(self) -> bool:
        """Whether the layer's weight, or its neighbours' first parameter, is another one than at the start."""
        now = _probe(self.module, self.parent)
        return now is not None and self._reference is not None and not torch.equal(now, self._reference)


def parameters_of(optimizer: torch.optim.Optimizer) -> set[int]:
    """The identities of what an optimizer holds."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def parts(model: nn.Module, layers: Iterable[str]) -> dict[str, nn.Module]:
    """The model and every part of it that holds one of the layers: what a training loop may call."""
    names = {""} | {name[:cut] for name in layers for cut in range(len(name)) if name[cut] == "."}
    return {name: model.get_submodule(name) for name in sorted(names)}


def parent_of(model: nn.Module, name: str) -> nn.Module:
    """The module that holds a layer; the layer where it is the model."""
    return model.get_submodule(name.rpartition(".")[0])


@torch.no_grad()
def _probe(module: _BatchNorm, parent: nn.Module) -> Tensor | None:
    found = module.weight if module.weight is not None else next(parent.parameters(), None)
    return None if found is None else found.detach().flatten()[:MOST].clone()
