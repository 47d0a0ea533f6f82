"""Keras files, read and written with h5py and zipfile alone: .keras, .weights.h5 and the older .h5."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from batchnorm.errors import BatchNormError
from batchnorm.interop.extras import needs
from batchnorm.interop.keras_layers import Variable, layers_of
from batchnorm.interop.statistics import torch_momentum
from batchnorm.interop.weights import Layer, Weights
from batchnorm.interop.whole_files import write_bytes

_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"


def read_keras_file(path: Path) -> Weights:
    """The layers of a .keras, .h5 or .weights.h5 file.

    Raises:
        BatchNormError: not such a file, or one that points to data outside itself.
    """
    h5py = needs("h5py")
    try:
        data, config = _contents(path)
        with h5py.File(io.BytesIO(data), "r") as file:
            if "layer_names" in file.attrs or "model_weights" in file:
                config = config or json.loads(_text(file.attrs.get("model_config", "{}")))
                layers, raw = _read_named(file, _settings(config))
            else:
                layers, raw = _read_numbered(file, _settings(config))
    except BatchNormError:
        raise
    except Exception as error:
        raise BatchNormError(
            f"source must be a Keras file; {path.name} could not be read as one ({type(error).__name__}: {error})"
        ) from error
    if not layers:
        raise BatchNormError(f"source must hold layers with weights; {path.name} holds none")
    return Weights("keras", raw, layers, bool(config), "biased", source=path)


def write_keras_file(
    target: Weights, raw: Mapping[Any, Any], settings: Mapping[str, tuple[float, float | None]], path: Path
) -> Path:
    """A copy of the template file with new arrays, eps and momentum."""
    h5py = needs("h5py")
    template: Path = target.source
    if template.suffix != path.suffix:
        raise BatchNormError(f"like must be a {path.suffix} file, as the target is; it was {template.name}")
    data, config = _contents(template)
    names = {layer.name for layer in target.layers}
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        for key, array in raw.items():
            file[key][...] = array
        if "model_config" in file.attrs:
            legacy = json.loads(_text(file.attrs["model_config"]))
            _set_settings(legacy, settings, names)
            file.attrs["model_config"] = json.dumps(legacy)
    if template.suffix != ".keras":
        return write_bytes(path, buffer.getvalue())
    _set_settings(config, settings, names)

    replaced = {_WEIGHTS: buffer.getvalue(), _CONFIG: json.dumps(config).encode()}
    whole = io.BytesIO()
    with zipfile.ZipFile(template) as old, zipfile.ZipFile(whole, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, replaced.get(entry) or old.read(entry))
    return write_bytes(path, whole.getvalue())


def _contents(path: Path) -> tuple[bytes, dict[str, Any]]:
    if path.suffix != ".keras":
        return path.read_bytes(), {}
    with zipfile.ZipFile(path) as archive:
        return archive.read(_WEIGHTS), json.loads(archive.read(_CONFIG))


def _read_named(file: Any, settings: dict[str, tuple[str, dict[str, Any]]]) -> tuple[list[Layer], dict[Any, Any]]:
    """The older layout: every variable under its own name, a nested model's in one group."""
    root = file.get("model_weights", file)
    layers: list[Layer] = []
    raw: dict[Any, Any] = {}
    for outer in (_text(n) for n in root.attrs["layer_names"]):
        group = _inside(root, outer)
        grouped: dict[str, list[Variable]] = {}
        for full in (_text(n) for n in group.attrs["weight_names"]):
            owner, _, leaf = re.sub(r":\d+$", "", full).rpartition("/")
            dataset = _dataset(group, full)
            raw[dataset.name] = dataset[()]
            grouped.setdefault(owner, []).append(Variable(dataset.name, leaf, raw[dataset.name]))
        for owner, variables in grouped.items():
            name = owner if owner.split("/")[0] == outer else outer if owner == "" else f"{outer}/{owner}"
            class_name, config = settings.get(name) or settings.get(outer) or (None, {})
            layers += layers_of(name, class_name, config, variables)
    return layers, raw


def _read_numbered(file: Any, settings: dict[str, tuple[str, dict[str, Any]]]) -> tuple[list[Layer], dict[Any, Any]]:
    """The layout of Keras 3: variables numbered in a group `vars`, which carries the layer's own name."""
    found: dict[str, list[Layer]] = {}
    raw: dict[Any, Any] = {}
    for name, group_name, variables in _groups(file, ()):
        for variable in variables:
            raw[variable.key] = variable.array
        if name in found:
            raise BatchNormError(f"source must have layers of different names; two are called {name!r}")
        class_name, config = settings.get(name) or (_class_of(group_name, settings), {})
        found[name] = layers_of(name, class_name, config, variables)
    order = {name: i for i, name in enumerate(settings)}
    names = sorted(found, key=lambda n: order.get(n, len(order))) if settings else list(found)
    return [layer for name in names for layer in found[name]], raw


def _groups(group: Any, path: tuple[str, ...]) -> Iterator[tuple[str, str, list[Variable]]]:
    for key in sorted(group, key=lambda k: [int(w) if w.isdigit() else w for w in re.split(r"(\d+)", k)]):
        if not path and key in ("optimizer", "optimizer_weights", "metrics", "_layer_checkpoint_dependencies"):
            continue
        child = _inside(group, key)
        if not hasattr(child, "keys"):
            continue
        if key == "vars":
            numbers = sorted((k for k in child if k.isdigit()), key=int)
            variables = []
            for number in numbers:
                dataset = _dataset(child, number)
                variables.append(Variable(dataset.name, None, dataset[()]))
            if variables:
                yield "/".join(path), group.name.rpartition("/")[2], variables
        elif key == "layers":
            # Members of a container are listed by class; the group `vars` knows their own names.
            for member in child:
                inner = _inside(child, member)
                own = _text(inner["vars"].attrs.get("name", member)) if "vars" in inner else member
                yield from _groups(inner, (*path, own))
        else:
            yield from _groups(child, (*path, key))


def _class_of(group_name: str, settings: Mapping[str, Any]) -> str | None:
    """The class a group is named after, if it is one that is known."""
    snake = re.sub(r"_\d+$", "", group_name).replace("_", "")
    known = r"(separable|depthwise)?conv[123]d(transpose)?|dense|batchnormalization|layernormalization"
    return snake if re.fullmatch(known, snake) else None


def _settings(config: Any, path: tuple[str, ...] = ()) -> dict[str, tuple[str, dict[str, Any]]]:
    """Class and settings by path, in the order of the file, nested models included."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for layer, name in _entries(config, path):
        found["/".join(name)] = (str(layer.get("class_name")), layer.get("config") or {})
    return found


def _entries(config: Any, path: tuple[str, ...]) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    inner = config.get("config") if isinstance(config, dict) else None
    for layer in (inner.get("layers") or []) if isinstance(inner, dict) else []:
        if not isinstance(layer, dict) or not isinstance(layer.get("config"), dict):
            continue
        name = (*path, str(layer["config"].get("name", layer.get("name"))))
        yield layer, name
        yield from _entries(layer, name)


def _set_settings(config: Any, settings: Mapping[str, tuple[float, float | None]], names: set[str]) -> None:
    for layer, path in _entries(config, ()):
        name = "/".join(path)
        if name in settings and name in names:
            eps, momentum = settings[name]
            layer["config"]["epsilon"] = eps
            if momentum is not None:
                layer["config"]["momentum"] = torch_momentum(momentum)


def _inside(group: Any, key: str) -> Any:
    """A member that lies in this file: a link to another file is not followed."""
    h5py = needs("h5py")
    if isinstance(group.get(key, getlink=True), h5py.ExternalLink):
        raise BatchNormError(f"source must hold its own data; {group.name}/{key} is a link to another file")
    return group[key]


def _dataset(group: Any, name: str) -> Any:
    *parents, last = name.split("/")
    for parent in parents:
        group = _inside(group, parent)
    dataset = _inside(group, last)
    if not hasattr(dataset, "shape") or dataset.is_virtual or dataset.external or dataset.dtype.kind not in "fiub":
        raise BatchNormError(f"source must hold numbers of its own; {group.name}/{last} does not")
    return dataset


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
