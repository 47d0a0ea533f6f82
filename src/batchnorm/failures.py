"""What the caller's own code raised (a model, a loader, a metric), in one sentence that says where."""

from __future__ import annotations

import inspect
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.arguments import told
from batchnorm.errors import BatchNormError, UserCodeError

_NOT_THEIRS = (str(Path(__file__).parent), sysconfig.get_path("stdlib"), "<")


def reason(error: BaseException) -> str:
    """The class of an error, the line of the caller's file where it was raised, and its first line."""
    words = next((line for line in str(error).splitlines() if line.strip()), "without a word")
    # Torch goes on with a list of signatures.
    words = words.strip().removesuffix("but expected one of:").rstrip(" ,:.")
    return f"{type(error).__name__}{_place(error)}: {words}"


def _place(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f" in {Path(error.filename or '?').name}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(_NOT_THEIRS) and "site-packages" not in f.filename]
    return f" in {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""


def layer_of(error: BaseException, model: nn.Module) -> str:
    """The innermost module of a model whose forward was running, as ` in layer 'a.b' (Conv2d)`; "" where it is all."""
    names = {id(module): (name, type(module).__name__) for name, module in model.named_modules()}
    found, frame = "", error.__traceback__
    while frame is not None:
        name, kind = names.get(id(frame.tb_frame.f_locals.get("self")), ("", ""))
        found = f" in layer {name!r} ({kind})" if name else found
        frame = frame.tb_next
    return found


def of_forward(
    error: Exception, model: nn.Module, batch: Any, number: int | None, by_function: bool, loader: str
) -> UserCodeError:
    """The error of a forward on a batch of the argument that is called loader."""
    what = (
        "forward_fn must run the model on each batch" if by_function else f"{loader} must yield what the model runs on"
    )
    at = "a batch" if number is None else f"batch {number}"
    hint = "" if by_function else _inputs(batch, model) or _hint(batch, model)
    return UserCodeError(f"{what}; {at} ({_batch(batch)}) failed{layer_of(error, model)}: {reason(error)}{hint}")


def of_loader(error: Exception, name: str, number: int) -> UserCodeError:
    """The error of a loader."""
    return UserCodeError(f"{name} must yield batches; it failed at batch {number}: {reason(error)}")


def one_number(measure: Callable[[], Any], legal: str, at: str = "") -> float:
    """What a metric gives; NaN and infinity are numbers too, as a broken network has them."""
    try:
        found = measure()
    except BatchNormError:
        raise
    except Exception as error:
        raise UserCodeError(f"{legal}; {at}it raised {reason(error)}") from error
    try:
        if isinstance(found, str | bytes):
            raise TypeError
        return float(found)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BatchNormError(f"{legal}; {at}it returned {told(found)}") from error


def _batch(batch: Any) -> str:
    """What a batch holds, its first parts by name."""
    if isinstance(batch, Mapping):
        parts = [f"{key} {told(value)}" for key, value in list(batch.items())[:3]]
    elif type(batch) in (tuple, list):
        parts = [told(value) for value in batch[:3]]
    else:
        return told(batch)
    rest = f" and {len(batch) - len(parts)} more" if len(batch) > len(parts) else ""
    return f"a {type(batch).__name__} of {', '.join(parts) or 'nothing'}{rest}"


def _inputs(batch: Any, model: nn.Module) -> str:
    """That a model takes several inputs, where a batch is no dict of them."""
    try:
        wanted = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return ""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    count = sum(p.kind in positional and p.default is inspect.Parameter.empty for p in wanted)
    if count < 2 or not isinstance(batch, tuple | list) or not batch:
        return ""
    given = "*batch[0]" if isinstance(batch[0], tuple | list) and len(batch[0]) >= count else f"*batch[:{count}]"
    return f"; the model takes {count} inputs: give forward_fn, as lambda model, batch: model({given})"


def _hint(given: Any, model: nn.Module) -> str:
    """What is likely wrong with a batch, by its type alone."""
    if isinstance(given, Mapping):
        name = next((key for key, value in given.items() if isinstance(value, Tensor)), "x")
        example = f"lambda model, batch: model(batch[{name!r}])"
        return f"; a dict's keys are the model's arguments by name, or it goes in whole: give forward_fn, as {example}"
    batch: Any = list(given) if isinstance(given, tuple | list) else given
    tuple_like = isinstance(given, tuple | list) and len(given) > 0
    x = batch[0] if tuple_like else batch
    if type(x).__module__ == "numpy":
        return "; convert it with torch.from_numpy"
    if not isinstance(x, Tensor):
        return ""
    others = [item for item in batch[1:] if isinstance(item, Tensor)] if tuple_like else []
    if not x.is_floating_point() and any(item.is_floating_point() and item.dim() > x.dim() for item in others):
        return "; of a tuple the first element goes to the model: are the labels first?"
    wanted = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if x.dtype != wanted and not x.is_complex():
        scaled = " and divide bytes by 255" if x.dtype == torch.uint8 else ""
        return f"; the model is {str(wanted).removeprefix('torch.')}: convert the batch{scaled}"
    return ""
