"""Which reader and which writer serve an object or a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from batchnorm.arguments import told
from batchnorm.errors import BatchNormError, check
from batchnorm.files import check_readable, check_writable, load_state, save_state
from batchnorm.interop import equinox_format, flax_format, haiku_format, keras_files, keras_models, onnx_format
from batchnorm.interop import torch_format as torch_
from batchnorm.interop.trees import flatten, load_tree, save_tree
from batchnorm.interop.weights import Weights

Settings = Mapping[str, tuple[float, float | None]]
_KERAS, _TREES, _TORCH = (".keras", ".h5", ".hdf5"), (".msgpack", ".npz"), (".pt", ".pth", ".bin", ".safetensors")
SUFFIXES = (*_TORCH, *_KERAS, *_TREES, ".onnx")


def read(source: Any, argument: str = "source", key: str | None = None) -> Weights:
    """The layers of a model, a collection of weights, or a file.

    Raises:
        BatchNormError: nothing here reads it.
    """
    if isinstance(source, str | Path):
        return _read_file(Path(source), argument, key)
    check(key is None, "key", f"None where {argument} is no file", repr(key))
    if _comes_from(source, "keras"):  # with the torch backend these are torch modules too
        return keras_models.read_keras_model(source)
    if isinstance(source, nn.Module):
        return torch_.read_module(source)
    if _comes_from(source, "flax.nnx"):
        return flax_format.read_nnx(source)
    if isinstance(source, Mapping) and source:
        if any(isinstance(value, Tensor) for value in source.values()):
            return torch_.read_state(source)
        leaves = flatten(source).values()
        if leaves and not any(isinstance(leaf, Tensor) for leaf in leaves):
            return flax_format.read_tree(source)
    if isinstance(source, tuple) and len(source) == 2:
        if all(isinstance(part, Mapping) for part in source):
            return haiku_format.read_haiku(source)
        if _comes_from(source[1], "equinox"):
            return equinox_format.read_equinox(source)
    raise BatchNormError(
        f"{argument} must be a file, a torch module or state dict, a Keras model, Flax variables or an nnx module, "
        f"(model, state) of Equinox or (params, state) of Haiku; it was {_say(source)}"
    )


def _read_file(path: Path, argument: str, key: str | None) -> Weights:
    check_readable(path, argument)
    found = _by_suffix(path, argument, key)
    if not found.layers:
        raise BatchNormError(f"{argument} must hold the weights of layers; {path.name} holds none")
    return found


def _by_suffix(path: Path, argument: str, key: str | None) -> Weights:
    if path.suffix in _KERAS:
        return keras_files.read_keras_file(path)
    if path.suffix in _TREES:
        return flax_format.read_tree(load_tree(path))
    if path.suffix == ".onnx":
        return onnx_format.read_onnx(path)
    if path.suffix in _TORCH:
        return torch_.read_state(load_state(path, key, argument))
    raise BatchNormError(f"{argument} must end in one of {', '.join(SUFFIXES)}; it was {path.name}")


def target_for(target: Any, like: Any, source: Weights) -> tuple[Weights, Path | None]:
    """Where the result goes: its layers as they are now (or as the source names them), and its file if it is one.

    Raises:
        BatchNormError: a file format that needs a template and has none, or cannot be written.
    """
    if target in ("torch", "flax") if isinstance(target, str) else False:
        blank: Callable[[Weights], Weights] = torch_.blank_state if target == "torch" else flax_format.blank_tree
        template = blank(source) if like is None else _names_of(like)
        if template.format != target:
            raise BatchNormError(f"like must be of the target's format, {target}; it was {_say(like)}")
        return template, None
    if not isinstance(target, str | Path):
        return read(target, "target"), None
    path = Path(target)
    if path.suffix not in SUFFIXES:
        raise BatchNormError(
            f"target must be 'torch', 'flax', a model, or a file that ends in one of {', '.join(SUFFIXES)}; "
            f"it was {str(target)!r}"
        )
    check_writable(path, "target")
    if like is not None:
        template = _names_of(like)
        if _family(template) != _family_of(path):
            raise BatchNormError(f"like must be of the target's format, {path.suffix}; it was {_say(like)}")
        return template, path
    if path.suffix in _TORCH:
        return torch_.blank_state(source), path
    if path.suffix in _TREES:
        return flax_format.blank_tree(source), path
    raise BatchNormError(
        f"writing {path.suffix} needs like=, a file of the target's architecture, whose weights are replaced"
    )


def _names_of(like: Any) -> Weights:
    """A template; of a torch model only what its state dict holds, so that the model itself stays as it is."""
    template = read(like, "like")
    if template.format != "torch module":
        return template
    layers = [replace(layer, eps=None, momentum=None) for layer in template.layers]
    return replace(template, format="torch", layers=layers, source=like.state_dict())


def write(target: Weights, raw: Mapping[Any, Any], settings: Settings, path: Path | None) -> Any:
    """Put the new arrays and settings where they belong; the object or the path that now holds them."""
    result = _write(target, raw, settings, path)
    if path is not None and target.format == "torch":
        save_state(result, path)
    elif path is not None and target.format == "flax":
        save_tree(result, path)
    return result if path is None else path


def _write(target: Weights, raw: Mapping[Any, Any], settings: Settings, path: Path | None) -> Any:
    if target.format == "torch module":
        return torch_.write_module(target, raw, settings)
    if target.format == "keras model":
        return keras_models.write_keras_model(target, raw, settings)
    if target.format == "nnx module":
        return flax_format.write_nnx(target, raw, settings)
    if path is not None and target.format == "keras":
        return keras_files.write_keras_file(target, raw, settings, path)
    if path is not None and target.format == "onnx":
        return onnx_format.write_onnx(target, raw, settings, path)
    writers: dict[str, Callable[[Weights, Mapping[Any, Any]], Any]] = {
        "torch": torch_.write_state,
        "flax": flax_format.write_tree,
        "haiku": haiku_format.write_haiku,
        "equinox": equinox_format.write_equinox,
    }
    return writers[target.format](target, raw)


def _family(weights: Weights) -> str:
    return weights.format.partition(" ")[0] if weights.format != "keras model" else "a Keras model in memory"


def _family_of(path: Path) -> str:
    if path.suffix in _KERAS:
        return "keras"
    return "torch" if path.suffix in _TORCH else "flax" if path.suffix in _TREES else "onnx"


def _comes_from(thing: Any, package: str) -> bool:
    return any(c.__module__ == package or c.__module__.startswith(f"{package}.") for c in type(thing).__mro__)


def _say(thing: Any) -> str:
    return str(thing) if isinstance(thing, str | Path) else told(thing)
