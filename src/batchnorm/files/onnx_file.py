"""ONNX files: the inputs of each BatchNormalization node, under the names that a state dict gives them."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from batchnorm.errors import BatchNormError
from batchnorm.files.entry import MOST_CHANNELS

INPUTS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Initializer:
    """A tensor that the file's reader holds in memory, with what `Entry` says of one."""

    values: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """As in the file."""
        return self.values.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """As in the file."""
        return tuple(self.values.shape)

    def read(self, data: mmap.mmap, limit: int = MOST_CHANNELS) -> Tensor:
        """At most limit values in float64."""
        return self.values.flatten()[:limit].double()


def entries(path: Path) -> dict[str, Any]:
    """The tensors of all BatchNormalization nodes: `<layer>.running_mean` and so on.

    Raises:
        BatchNormError: onnx is not installed.
        ValueError: it is no ONNX model.
    """
    try:
        import onnx
    except ImportError as error:
        raise BatchNormError(f"reading {path.name} needs: pip install 'batchnorm[interop]'") from error
    try:
        model = onnx.load(str(path))
        raw = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    # The protobuf reader and the conversion fail in many ways on a file that is something else.
    except Exception as error:
        raise ValueError(f"it cannot be read as an ONNX model ({type(error).__name__})") from error
    found: dict[str, Any] = {}
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            keys = list(node.input[1:5])
            for role, key in zip(INPUTS, keys, strict=True):
                if key in raw:
                    found[f"{layer_name(keys, node)}.{role}"] = Initializer(torch.tensor(raw[key]))
    return found


def layer_name(keys: list[Any], node: Any) -> str:
    """The module path that a node's initializers share, or the node's own name."""
    paths = {str(key).rpartition(".")[0] for key in keys}
    path = paths.pop() if len(paths) == 1 else ""
    return path or node.name or node.output[0]
