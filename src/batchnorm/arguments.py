"""What a public call may be given: one declaration a verb, and one sentence for each argument that is not legal.

`@arguments(affine=a_flag)` above a function or a class checks its arguments before anything runs. A kind, such as
`a_flag`, is a function of the argument's name and value that raises; an argument that is left at its default is legal.
"""

from __future__ import annotations

import errno
import functools
import inspect
import math
import numbers
import os
from collections.abc import Callable, Iterable, Mapping, Sized
from difflib import get_close_matches
from typing import Any, NoReturn, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import Dataset, IterableDataset

from batchnorm.errors import ArgumentError, BatchNormError

Kind = Callable[[str, Any], None]
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def arguments(**kinds: Kind) -> Callable[[Decorated], Decorated]:
    """Check the arguments of a function, or of a class's constructor, before it runs.

    Example:
        >>> @arguments(times=whole(1))
        ... def repeat(word, times=2):
        ...     return word * times
        >>> repeat("ab", time=3)
        Traceback (most recent call last):
        batchnorm.errors.ArgumentError: repeat has no argument 'time', it has word, times; did you mean times?
    """

    def decorate(decorated: Any) -> Any:
        if not isinstance(decorated, type):
            name = decorated.__qualname__.removesuffix(".__init__").rpartition(".")[2]
            return _checked(decorated, name, kinds)
        decorated.__init__ = _checked(decorated.__init__, decorated.__name__, kinds)  # pyright: ignore
        return decorated

    return decorate


def _checked(function: Any, name: str, kinds: Mapping[str, Kind]) -> Any:
    signature = inspect.signature(function)
    defaults = {parameter.name: parameter.default for parameter in signature.parameters.values()}

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            raise ArgumentError(_misfit(name, signature, args, kwargs)) from None
        for argument, kind in kinds.items():
            if argument in given and given[argument] is not defaults[argument]:
                kind(argument, given[argument])
        return function(*args, **kwargs)

    return checked


def _misfit(function: str, signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """What does not go with a function's parameters: an unknown argument, one too many, one given twice or missing."""
    parameters = {name: p for name, p in signature.parameters.items() if name != "self"}
    by_position = [name for name, p in parameters.items() if p.kind == p.POSITIONAL_OR_KEYWORD]
    args = args[len(signature.parameters) - len(parameters) :]
    catches_all = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    unknown = [name for name in kwargs if name not in parameters and not catches_all]
    if unknown:
        meant = get_close_matches(unknown[0], parameters, 1)
        hint = f"; did you mean {meant[0]}?" if meant else ""
        return f"{function} has no argument {unknown[0]!r}, it has {', '.join(parameters) or 'none'}{hint}"
    if len(args) > len(by_position):
        listed = f" ({', '.join(by_position)})" if by_position else ""
        return f"{function} takes {len(by_position)} arguments by position{listed}; it was given {len(args)}"
    twice = [name for name in by_position[: len(args)] if name in kwargs]
    if twice:
        return f"{twice[0]} must be given once to {function}; it was given by position and by name"
    required = [n for n, p in parameters.items() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, 2)]
    missing = next((n for n in required if n not in by_position[: len(args)] and n not in kwargs), "an argument")
    return f"{missing} must be given to {function}; it was missing"


# What was given ---------------------------------------------------------------------------------------------------


def told(value: Any) -> str:
    """A value in a few words, for a message."""
    if value is None or isinstance(value, bool | numbers.Number | str | bytes | os.PathLike):
        text = repr(os.fspath(value) if isinstance(value, os.PathLike) else value)
        return text if len(text) <= 80 else f"{text[:76]}..."
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Tensor):
        return f"{_with_article(str(value.dtype).removeprefix('torch.'))} tensor of shape {tuple(value.shape)}"
    if isinstance(value, nn.Module):
        return f"the module {type(value).__name__}"
    if type(value).__module__ == "numpy" and hasattr(value, "shape"):
        return f"a numpy array of {value.dtype} and shape {value.shape}"
    if isinstance(value, dict | list | tuple | set):
        return f"{_with_article(type(value).__name__)} of {len(value)}"
    if callable(value):
        return f"the function {getattr(value, '__name__', type(value).__name__)}"
    return _with_article(type(value).__name__)


def _with_article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeio' else 'a'} {noun}"


def _refuse(name: str, legal: str, value: Any, hint: str = "", *, of_type: bool = True) -> NoReturn:
    kind = ArgumentError if of_type else BatchNormError
    raise kind(f"{name} must be {legal}; it was {told(value)}{hint and f': {hint}'}")


# Kinds ------------------------------------------------------------------------------------------------------------


_MOST = 2**63 - 1  # of 64 bits


def a_flag(name: str, value: Any) -> None:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        _refuse(name, "True or False", value)


def whole(least: int, what: str = "") -> Kind:
    """An integer of so much or more; True is none."""
    legal = what or f"an integer of {least} or more"

    def kind(name: str, value: Any) -> None:
        # Symbolic sizes and numpy's integers are integers too.
        if isinstance(value, bool) or not hasattr(value, "__index__") or isinstance(value, Tensor):
            _refuse(name, legal, value)
        if not least <= value <= _MOST:
            _refuse(name, legal, value, of_type=False)

    return kind


def number(legal: str, test: Callable[[Any], bool] = lambda v: True, *, finite: bool = True) -> Kind:
    """A real number that passes a test; NaN never, infinity only where finite is False, True never."""

    def kind(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            _refuse(name, legal, value)
        try:
            size = float(value)
        except OverflowError:  # an integer beyond every float
            size = math.nan
        if math.isnan(size) or (finite and math.isinf(size)) or not test(value):
            _refuse(name, legal, value, of_type=False)

    return kind


def an_axis(name: str, value: Any) -> None:
    """The number of an axis."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        _refuse(name, "an integer, the number of an axis", value)


SHARE = number("in [0, 1]", lambda v: 0 <= v <= 1)
NOT_NEGATIVE = number("0 or more", lambda v: v >= 0)
POSITIVE = number("positive", lambda v: v > 0)
AT_LEAST_1 = number("1 or more", lambda v: v >= 1)
DECAY = number("in [0, 1)", lambda v: 0 <= v < 1)
BATCHES = whole(1, "an integer of 1 or more batches")
STEPS = whole(0, "an integer of 0 or more steps")


def or_function(kind: Kind) -> Kind:
    """The same, or a function that gives one."""

    def either(name: str, value: Any) -> None:
        if not callable(value) or isinstance(value, type):
            kind(name, value)

    return either


def or_none(kind: Kind) -> Kind:
    """The same, or None where that is not the default."""

    def either(name: str, value: Any) -> None:
        if value is not None:
            kind(name, value)

    return either


def or_mapping(kind: Kind) -> Kind:
    """The same, or a mapping of names to such."""

    def either(name: str, value: Any) -> None:
        if not isinstance(value, Mapping):
            kind(name, value)
            return
        for key, item in value.items():
            kind(f"{name}[{key!r}]", item)

    return either


def word(words: Any) -> Kind:
    """One of the words of a `Literal`."""
    legal = get_args(words)
    listed = f"{', '.join(map(repr, legal[:-1]))} or {legal[-1]!r}"

    def kind(name: str, value: Any) -> None:
        if not isinstance(value, str):
            _refuse(name, listed, value)
        if value not in legal:
            meant = get_close_matches(value.lower(), legal, 1)
            _refuse(name, listed, value, f"did you mean {meant[0]!r}?" if meant else "", of_type=False)

    return kind


def instance(of: type | tuple[type, ...], legal: str) -> Kind:
    """An object of a class."""

    def kind(name: str, value: Any) -> None:
        if not isinstance(value, of):
            made = isinstance(value, type) and issubclass(value, of)
            _refuse(name, legal, value, f"make one, {value.__name__}()" if made else "")

    return kind


a_tensor = instance(Tensor, "a tensor")
a_string = instance(str, "a string")


def a_function(name: str, value: Any) -> None:
    """Something that can be called; a class makes an object instead."""
    if not callable(value):
        _refuse(name, "a function", value)
    if isinstance(value, type):
        _refuse(name, "a function", value, f"give an instance, {value.__name__}()")


def some_names(name: str, value: Any) -> None:
    """Strings, one or several."""
    legal = "a list of names"
    if isinstance(value, Mapping | bytes | Tensor | nn.Module) or not isinstance(value, Iterable):
        _refuse(name, legal, value)
    if isinstance(value, list | tuple | set | frozenset):
        odd = [item for item in value if not isinstance(item, str)]
        if odd:
            _refuse(name, legal, value, f"one of them is {told(odd[0])}")


def a_state(name: str, value: Any) -> None:
    """A mapping of names to tensors."""
    if isinstance(value, nn.Module):
        _refuse(name, "a state dict", value, "give its state_dict()")
    if not isinstance(value, Mapping):
        _refuse(name, "a state dict", value)
    odd = [key for key, item in value.items() if not (isinstance(key, str) and isinstance(item, Tensor))]
    if odd:
        _refuse(name, "a state dict, tensors by name", value, f"{odd[0]!r} is {told(value[odd[0]])}")


def a_path(name: str, value: Any) -> None:
    """A string or a `pathlib.Path`."""
    if isinstance(value, Mapping | nn.Module):
        _refuse(name, "the path of a file", value, "write it with torch.save first")
    if not isinstance(value, str | os.PathLike):
        _refuse(name, "a path, a string or a pathlib.Path", value)
    try:
        os.stat(value)
    except ValueError:
        _refuse(name, "a path without null bytes", value, of_type=False)
    except OSError as error:
        # What is not there may be made, and what lies there is for its reader to say.
        if error.errno == errno.ENAMETOOLONG or not os.fspath(value):
            _refuse(name, "a path", value, "" if not os.fspath(value) else "it is too long", of_type=False)


def a_module(name: str, value: Any) -> None:
    """A `torch.nn.Module`."""
    if isinstance(value, nn.Module):
        return
    hint = ""
    if isinstance(value, type) and issubclass(value, nn.Module):
        hint = f"make one, {value.__name__}(...)"
    elif isinstance(value, list | tuple) and any(isinstance(item, nn.Module) for item in value):
        hint = "call it for each of them, or join them in torch.nn.ModuleList"
    elif isinstance(value, Mapping):
        hint = "load the state dict into a model, model.load_state_dict(...)"
    _refuse(name, "a torch.nn.Module", value, hint)


def a_module_with_values(name: str, value: Any) -> None:
    """A `torch.nn.Module` that is not on the meta device."""
    a_module(name, value)
    for path_of, item in (*value.named_parameters(), *value.named_buffers()):
        if item.is_meta:
            raise BatchNormError(
                f"{name} must hold values; {path_of} is on the meta device: call to_empty(device='cpu') and load a "
                "state dict"
            )


def a_module_with_shapes(name: str, value: Any) -> None:
    """A `torch.nn.Module` with values, none of whose lazy layers waits for its first batch."""
    a_module_with_values(name, value)
    for path_of, item in (*value.named_parameters(), *value.named_buffers()):
        if is_lazy(item):
            raise BatchNormError(f"{name} must have been run once; {path_of} of a lazy layer has no shape yet")


def some_batches(name: str, value: Any) -> None:
    """As `batches`, and not empty where that can be seen."""
    batches(name, value)
    if isinstance(value, list | tuple) and not value:
        raise BatchNormError(f"{name} must yield at least one batch; it was empty")


def batches(name: str, value: Any) -> None:
    """An iterable of batches, and nothing that is one batch or one sample after the other."""
    legal = "an iterable of batches"
    if isinstance(value, nn.Module):
        _refuse(name, legal, value, "the model and the loader may be in each other's place")
    if isinstance(value, Tensor) or (type(value).__module__ == "numpy" and hasattr(value, "shape")):
        _refuse(name, legal, value, "give it as [x], or cut it with x.split(32)")
    if isinstance(value, Dataset) and not isinstance(value, IterableDataset):
        _refuse(name, legal, value, "give DataLoader(dataset, batch_size=32)")
    if isinstance(value, Mapping):
        _refuse(name, legal, value, "give one batch as [batch]")
    if isinstance(value, str | bytes | type) or not isinstance(value, Iterable):
        _refuse(name, legal, value, "call it" if inspect.isgeneratorfunction(value) else "")


def a_device(name: str, value: Any) -> None:
    """A device that is here."""
    legal = "a device that is here, such as 'cpu'"
    if isinstance(value, bool) or not isinstance(value, str | int | torch.device):
        _refuse(name, legal, value)
    try:
        torch.empty(0, device=value)
    except Exception as error:
        why = str(error).splitlines()[0].partition(". ")[0].rstrip(".")
        raise BatchNormError(f"{name} must be {legal}; it was {told(value)}: {why}") from error


def a_device_with_values(name: str, value: Any) -> None:
    """A device that is here and holds values."""
    a_device(name, value)
    if torch.device(value).type == "meta":
        _refuse(name, "a device that holds values", str(value), of_type=False)


def a_process_group(name: str, value: Any) -> None:
    """A group of torch.distributed, or a mesh's."""
    if isinstance(value, str | bytes | numbers.Number | list | tuple | dict | nn.Module | Tensor | type):
        _refuse(name, "a process group, as torch.distributed.new_group() gives", value)


def a_floating_dtype(name: str, value: Any) -> None:
    """A floating-point dtype."""
    legal = "a floating-point dtype, such as torch.float32"
    if not isinstance(value, torch.dtype):
        _refuse(name, legal, value)
    if not value.is_floating_point:
        raise BatchNormError(f"{name} must be {legal}; it was {value}")


def several(name: str, value: Any) -> None:
    """A list or tuple of something."""
    if isinstance(value, str | bytes | Mapping) or not (isinstance(value, Iterable) and isinstance(value, Sized)):
        _refuse(name, "a list", value)


def several_of(kind: Kind) -> Kind:
    """A list or tuple of such."""

    def each(name: str, value: Any) -> None:
        several(name, value)
        for number, item in enumerate(value):
            kind(f"{name}[{number}]", item)

    return each


def an_array(name: str, value: Any) -> None:
    """Real numbers: what numpy makes an array of."""
    try:
        np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{name} must be an array of numbers; it was {told(value)}") from error


def a_path_or_paths(name: str, value: Any) -> None:
    """A path, or a list of some."""
    if not isinstance(value, list | tuple):
        return a_path(name, value)
    for item in value:
        a_path(name, item)
