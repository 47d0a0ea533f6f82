"""What `MODULE:FACTORY` on a command line names: a model, its batches, a metric.

These are other people's code: whatever fails in it becomes one sentence that says where.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from batchnorm.errors import BatchNormError, UserCodeError
from batchnorm.failures import reason
from batchnorm.files import load_archive

# Where set, an error of the caller's own code is raised with all its frames.
TRACEBACK = "BATCHNORM_TRACEBACK"


@contextmanager
def running(what: str) -> Iterator[None]:
    """Re-raise errors of user code as a `BatchNormError` that begins with `what` and names file and line."""
    whole = bool(os.environ.get(TRACEBACK))
    try:
        yield
    except UserCodeError as error:
        if whole and error.__cause__ is not None:
            raise error.__cause__ from None
        raise UserCodeError(f"{error} ({TRACEBACK}=1 shows all of it)") from error.__cause__
    except BatchNormError:
        raise
    except (Exception, SystemExit) as error:
        if whole:
            raise
        raise UserCodeError(f"{what}: {reason(error)} ({TRACEBACK}=1 shows all of it)") from error


def model_of(reference: str, weights: Path | None, key: str | None = None) -> nn.Module:
    """The model that `--model` names, with the state of `--weights`, of which `--key` says where it lies."""
    made = make(reference, "--model")
    if not isinstance(made, nn.Module):
        raise BatchNormError(f"--model must name a factory of a torch.nn.Module; {reference} gave {_kind(made)}")
    if weights is not None:
        try:
            made.load_state_dict(load_archive(weights, key).fitted(made.state_dict(), weights.name).state)
        except RuntimeError as error:
            first = str(error).splitlines()[-1].strip()
            raise BatchNormError(f"--weights must fit the model; {weights.name} does not: {first}") from error
    return made


def batches(reference: str, option: str = "--data") -> Iterable[Any]:
    """The batches that `--data` names."""
    data = make(reference, option)
    if isinstance(data, Tensor):
        shape = tuple(data.shape)
        raise BatchNormError(
            f"{option} must name a factory of batches; {reference} gave one tensor of shape {shape}: return "
            "tensor.split(32), or a DataLoader"
        )
    if not isinstance(data, Iterable):
        raise BatchNormError(f"{option} must name a factory of batches; {reference} gave {_kind(data)}")
    return data


def metric_of(reference: str) -> Callable[[Any, Any], float]:
    """The function of output and batch that `--metric` names."""
    function = find(reference, "--metric")

    def measure(output: Any, batch: Any) -> float:
        with running(f"--metric must take the output and the batch and return a number; {reference} failed"):
            return float(function(output, batch))

    return measure


def make(reference: str, option: str) -> Any:
    """What the factory returns."""
    factory = find(reference, option)
    with running(f"{option} must name a function that runs without arguments; {reference} failed"):
        return factory()


def find(reference: str, option: str) -> Callable[..., Any]:
    """The function itself; the current folder is looked in as well."""
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise BatchNormError(f"{option} must be MODULE:FACTORY, such as my_project.models:build; it was {reference!r}")
    if module_name.endswith(".py"):
        name = module_name.removesuffix(".py").replace("/", ".")
        raise BatchNormError(f"{option} must name a module, not a file: {name}:{attribute}; it was {reference!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        with running(f"{option} must name a module that can be imported; {module_name} failed"):
            module = importlib.import_module(module_name)
    except BatchNormError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and module_name.startswith(str(cause.name)):
            raise BatchNormError(
                f"{option} must name a module that is here or installed; there is no {module_name}"
            ) from error
        raise
    if not hasattr(module, attribute):
        close = get_close_matches(attribute, vars(module), 1)
        hint = f"; did you mean {module_name}:{close[0]}?" if close else ""
        raise BatchNormError(f"{option} must name something in its module; {module_name} has no {attribute!r}{hint}")
    factory = getattr(module, attribute)
    if not callable(factory):
        raise BatchNormError(f"{option} must name a function; {reference} is {_kind(factory)}")
    return factory


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"
