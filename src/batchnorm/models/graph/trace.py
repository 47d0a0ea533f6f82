"""The graph of a whole model: as it is where it is one, else by symbolic trace, else recorded from a run."""

from __future__ import annotations

import inspect
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.models.find import is_frozen_copy
from batchnorm.models.state import preserved


def is_whole(module: nn.Module) -> bool:
    """Batch norm layers are kept whole, whoever wrote them; so are linear maps and what is parametrized."""
    return isinstance(module, _WHOLE) or nn.utils.parametrize.is_parametrized(module) or is_frozen_copy(module)


class WholeLayers(fx.Tracer):
    """Torch's modules are whole, and those of `is_whole`."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is kept as one node."""
        return is_whole(m) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.Graph | None:
    """The graph of a model, which is left as it was; None where it cannot be traced."""
    if isinstance(model, fx.GraphModule):
        return model.graph
    # A trace runs the forward, which may count or keep what it meets; fx keeps constants on the model.
    for bound in (None, _defaults(model)):
        if bound is None or bound:
            with preserved(model):
                try:
                    return WholeLayers().trace(model, bound)
                except Exception:
                    # Any model may fail in its own way under symbolic tracing.
                    continue
    return None


def _defaults(model: nn.Module) -> dict[str, Any]:
    """The arguments that have a default: who calls the model without them has that."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return {}
    return {p.name: p.default for p in parameters if p.default is not p.empty}


_WHOLE = (
    _BatchNorm, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
