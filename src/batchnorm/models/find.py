"""Which modules of a model are batch norm layers, by name, each once."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.arguments import a_module, arguments
from batchnorm.errors import BatchNormError

# A verb that gives a model back gives back the caller's own type.
Model = TypeVar("Model", bound=nn.Module)


@arguments(model=a_module)
def batch_norm_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """Every batch norm layer of a model by its path: torch's, this package's, and subclasses of either.

    Example:
        >>> import torch
        >>> from batchnorm.models import batch_norm_layers
        >>> list(batch_norm_layers(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))))
        ['1']

    A layer used under several names appears once, under its first.

    Raises:
        BatchNormError: model is not a module.
    """
    return {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}


def present_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """Those of a model that must have some; an error if there is none."""
    layers = batch_norm_layers(model)
    if not layers:
        raise without_layers(model)
    return layers


def tracking_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """Those that hold running statistics; an error if there is none."""
    layers = {name: m for name, m in batch_norm_layers(model).items() if m.running_mean is not None}
    if not layers:
        raise without_layers(model, " with running statistics")
    return layers


def without_layers(model: nn.Module, which: str = "") -> BatchNormError:
    """That a model has none, and what can be done where it has them in another form."""
    return BatchNormError(f"model must contain a batch norm layer{which}; {type(model).__name__} has none{_why(model)}")


def _why(model: nn.Module) -> str:
    found = [(name, module) for name, module in model.named_modules() if is_frozen_copy(module)]
    if not found:
        compiled = (torch.jit.ScriptModule, torch.fx.GraphModule)
        made = any(isinstance(module, compiled) for module in model.modules())
        return " as a module, only as operations of its graph: give the model that it was made from" if made else ""
    name, module = found[0]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return (
        f" whose statistics can move; those of {name or '(root)'} ({type(module).__name__}){more} are constants: fold "
        "takes such layers, and batchnorm.interop.to_torch makes frozen layers of torch of them"
    )


def is_frozen_copy(module: nn.Module) -> bool:
    """Whether a module is batch norm with constants, such as torchvision's `FrozenBatchNorm2d`, by what it is and does.

    It has no parameters, and four buffers of one length, which a forward proves to be used as batch norm does.
    """
    return frozen_eps(module) is not None


@torch.no_grad()
def frozen_eps(module: nn.Module) -> float | None:
    """The eps of a frozen copy, from its attribute or from one forward; None for any other module."""
    if (
        isinstance(module, _BatchNorm)
        or module._parameters
        or module._modules
        or not set(module._buffers.keys()) >= _ROLES
    ):
        return None
    weight, bias, mean, var = (module._buffers[name] for name in ("weight", "bias", "running_mean", "running_var"))
    if any(t is None or t.dim() != 1 or t.shape != var.shape or t.is_meta for t in (weight, bias, mean, var)):  # pyright: ignore
        return None
    weight, bias, mean, var = (t.detach().cpu().double() for t in (weight, bias, mean, var))  # pyright: ignore
    like: Any = module._buffers["running_var"]
    if not like.is_floating_point():
        return None
    spread = (var + 1e-5).sqrt().view(1, -1, 1, 1)
    x = torch.linspace(-1, 1, 2 * len(var), dtype=torch.float64).view(2, len(var), 1, 1) * spread
    x = x.to(like)
    forward = type(module).forward
    try:
        y: Any = forward(module, x)
        y = y.cpu().double().flatten(1)
    except Exception:
        return None
    flat = x.cpu().double().flatten(1)
    for eps in dict.fromkeys((getattr(module, "eps", 1e-5), 1e-5, 1e-3, 1e-6, 1e-12, 0.0)):
        scale = weight / (var + eps).sqrt()
        expected = flat * scale + (bias - mean * scale)
        size = (flat * scale).abs() + (mean * scale).abs() + bias.abs()
        if y.shape == expected.shape and bool(
            ((y - expected).abs() <= 64 * torch.finfo(like.dtype).eps * size + 1e-12).all()
        ):
            return float(eps)
    return None


_ROLES = {"weight", "bias", "running_mean", "running_var"}
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def is_timms(layer: object) -> bool:
    """Whether a layer is timm's batch norm with an activation, which `interop.trainers.timm.convert` takes."""
    return any("BatchNormAct" in kind.__name__ for kind in type(layer).__mro__)


def inner_name(model: nn.Module, name: str) -> str:
    """A layer's path without what compiling, DDP and FSDP put before it."""
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        name = name.removeprefix("module.")
    return _WRAPPERS.sub("", name)
