"""ONNX files: layers are the nodes of the graph in its order, weights its initializers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchnorm.errors import BatchNormError
from batchnorm.files.onnx_file import INPUTS, layer_name
from batchnorm.interop.extras import needs
from batchnorm.interop.statistics import torch_momentum
from batchnorm.interop.weights import Layer, Slot, Weights
from batchnorm.interop.whole_files import write_bytes


def read_onnx(path: Path) -> Weights:
    """The layers of an .onnx file, with epsilon and momentum.

    Raises:
        BatchNormError: not a model, a Gemm that scales, or weights that the graph computes.
    """
    onnx = needs("onnx")
    try:
        model = onnx.load(str(path))
        raw = {tensor.name: onnx.numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
    except Exception as error:
        raise BatchNormError(
            f"source must be an ONNX model; {path.name} could not be read as one ({type(error).__name__})"
        ) from error
    layers: list[Layer] = []
    used: set[str] = set()
    for node in model.graph.node:
        layer = _layer(node, raw, model)
        if layer is not None and used.isdisjoint(str(s.key) for s in layer.slots.values()):
            layers.append(layer)
            used |= {str(s.key) for s in layer.slots.values()}
    kept = {name: raw[name] for name in raw if name in used}
    if not layers:
        raise BatchNormError(f"source must hold layers with weights; {path.name} holds none")
    # The standard's running variance is biased; torch exports its own, which is not.
    variance = "unbiased" if model.producer_name == "pytorch" else "biased"
    return Weights("onnx", kept, layers, True, variance, source=(path, model))


def _layer(node: Any, raw: Mapping[str, Any], model: Any) -> Layer | None:
    onnx = needs("onnx")
    settings = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "BatchNormalization":
        keys = list(node.input[1:5])
        missing = [k for k in keys if k not in raw]
        if missing:
            raise BatchNormError(f"source must hold batch norm's inputs as initializers; {missing[0]} is computed")
        slots = {role: Slot(key, "") for role, key in zip(INPUTS, keys, strict=True)}
        eps, momentum = settings.get("epsilon", 1e-5), settings.get("momentum", 0.9)
        return Layer(layer_name(keys, node), "batch_norm", slots, _short(eps), torch_momentum(_short(momentum)))
    if node.op_type in ("Conv", "ConvTranspose") and node.input[1] in raw:
        kind = "conv" if node.op_type == "Conv" else "conv_transpose"
        return _with_bias(node, kind, "", raw, node.input[2:3])
    if node.op_type == "Gemm" and node.input[1] in raw:
        if settings.get("alpha", 1.0) != 1.0 or settings.get("beta", 1.0) != 1.0:
            raise BatchNormError(f"source must hold plain linear maps; Gemm {node.name!r} has an alpha or a beta")
        return _with_bias(node, "linear", "" if settings.get("transB", 0) else "last:linear", raw, node.input[2:3])
    if node.op_type == "MatMul" and node.input[1] in raw and raw[node.input[1]].ndim == 2:
        users = [n for n in model.graph.node if node.output[0] in n.input]
        bias = [i for n in users if len(users) == 1 and n.op_type == "Add" for i in n.input if i in raw]
        return _with_bias(node, "linear", "last:linear", raw, bias)
    return None


def _with_bias(node: Any, kind: str, layout: str, raw: Mapping[str, Any], bias: Any) -> Layer:
    slots = {"weight": Slot(node.input[1], layout)}
    slots |= dict([("bias", Slot(key, "")) for key in bias if key in raw][:1])
    return Layer(layer_name([s.key for s in slots.values()], node), kind, slots)


def _short(value: float) -> float:
    """A float32 attribute as the decimal that was meant, 1e-05 and not 9.99999974e-06."""
    return float(f"{value:.6g}")


def write_onnx(
    target: Weights, raw: Mapping[Any, Any], settings: Mapping[str, tuple[float, float | None]], path: Path
) -> Path:
    """A copy of the template with new initializers, epsilon and momentum."""
    onnx = needs("onnx")
    template, _ = target.source
    model = onnx.load(str(template))
    for tensor in model.graph.initializer:
        if tensor.name in raw:
            tensor.CopyFrom(onnx.numpy_helper.from_array(raw[tensor.name], tensor.name))
    by_key = {layer.slots["running_mean"].key: layer.name for layer in target.layers if layer.kind == "batch_norm"}
    for node in model.graph.node:
        name = by_key.get(node.input[3], "") if node.op_type == "BatchNormalization" else ""
        if name in settings:
            eps, momentum = settings[name]
            wanted = {"epsilon": eps} | ({} if momentum is None else {"momentum": torch_momentum(momentum)})
            for attribute in [a for a in node.attribute if a.name in wanted]:
                node.attribute.remove(attribute)
            node.attribute.extend(onnx.helper.make_attribute(k, float(v)) for k, v in wanted.items())
    return write_bytes(path, model.SerializeToString())
