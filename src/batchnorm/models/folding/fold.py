"""Fold: absorb batch norm layers into the linear maps beside them, all or nothing, with the proof."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from batchnorm.arguments import a_flag, a_module_with_shapes, arguments, whole, word
from batchnorm.errors import UserCodeError
from batchnorm.failures import reason
from batchnorm.models.folding.absorb import LINEAR_MAPS, channel_range
from batchnorm.models.folding.build import build, gap_of, verified, watched
from batchnorm.models.folding.channels import affine_of, normalization_layers
from batchnorm.models.folding.linear import as_linear
from batchnorm.models.folding.plan import Fold, Planner
from batchnorm.models.folding.result import FoldedLayer, Folding
from batchnorm.models.folding.run import Example, compare, observe, outputs_of, seconds
from batchnorm.models.graph.flow import flow_of
from batchnorm.models.graph.record import recorded

Rest = Literal["affine", "keep"]
Padding = Literal["refuse", "explicit"]


@arguments(
    model=a_module_with_shapes,
    rest=word(Rest),
    padding=word(Padding),
    layers=a_flag,
    timing=whole(0),
)
def fold(
    model: nn.Module,
    example_input: Any,
    *,
    rest: Rest = "affine",
    padding: Padding = "refuse",
    layers: bool = False,
    timing: int = 5,
) -> Folding:
    """Absorb the batch norm layers of a model into its convolutions and linear layers, for inference.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from batchnorm.models import fold
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> result = fold(net, torch.randn(2, 3, 16, 16))
        >>> result.model[1], result.left, result.max_rel_error < 1e-5
        (Identity(), {}, True)

    A layer goes into every map that feeds it where nothing else takes their outputs; else into every
    map that it alone feeds. What cannot be absorbed becomes a `ChannelAffine`. Layers are found by
    `torch.fx`; where a model cannot be traced, in a recorded run on the example.
    Every fold is checked: on the example, in float64, the output of each absorbed layer must be what
    it was, or the layer is left with the reason. A fold holds for the path that the example takes
    through the model. All statistics are constants from now on: fold when training is over.

    Args:
        model: any module; not changed. Its train or eval mode does not matter.
        example_input: a tensor, a tuple of the model's arguments, or a dict of its keyword arguments.
        rest: what becomes of layers that cannot be absorbed: "affine", or "keep" them.
        padding: for a layer before a convolution that pads with zeros, which are no zeros before the
            layer's shift: "refuse" to move it, or "explicit": pad each channel with its own value
            in a step before the convolution, exact and about as costly as the affine map.
        layers: measure the difference of each layer's output too.
        timing: rounds of timed forwards, before and after in turn; 0 for none.

    Raises:
        BatchNormError: no batch norm layer, lazy layers without shape, an example that the model
            cannot run, a word or number out of range.

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference" (2018), section 3.2.
    """
    # Folded before it is compiled: what torch.compile returns holds the module it was given.
    model = getattr(model, "_orig_mod", model)
    found = normalization_layers(model)
    example = Example(example_input)
    original = _in_eval(model)
    maps = [name for name, m in original.named_modules() if isinstance(m, LINEAR_MAPS)]
    calls = observe(original, example, [*found, *maps])
    flow = flow_of(original, lambda: recorded(original, example))
    planner = Planner(original, flow, calls, padding == "explicit")
    folds = [_fate(name, original, planner) for name in [n for n in calls if n in found]]
    folds += [Fold(n, "keep", None, reason="the example never reaches it") for n in found if n not in calls]
    folds, exact, why = verified(original, folds, example)
    if rest == "keep":
        folds = [replace(f, kind="keep") if f.kind == "affine" else f for f in folds]
    return replace(_result(original, folds, example, exact, layers, timing), not_exact=why)


def _in_eval(model: nn.Module) -> nn.Module:
    try:
        return as_linear(copy.deepcopy(model).eval())
    except Exception as error:
        raise UserCodeError(f"model must be one that copy.deepcopy can copy; it raised {reason(error)}") from error


def _fate(name: str, model: nn.Module, planner: Planner) -> Fold:
    layer = model.get_submodule(name)
    affine = affine_of(layer)
    if isinstance(affine, str):
        return Fold(name, "keep", None, reason=affine)
    return planner.place(name, affine)


def _result(
    original: nn.Module, folds: list[Fold], example: Example, exact: float, layers: bool, timing: int
) -> Folding:
    model = build(original, folds)
    names = watched(folds) if layers else set[str]()
    was, held = outputs_of(original, example, names)
    output, now = outputs_of(model, example, names)
    whole = compare(was, output)
    rows: dict[str, FoldedLayer] = {}
    for fold in folds:
        gap = gap_of(fold, folds, held, now) if layers and fold.kind != "keep" else (None, None)
        went = ", ".join(fold.maps) if fold.maps else {"affine": "affine", "keep": "kept"}[fold.kind]
        rows[fold.name] = FoldedLayer(went, *gap)
    before, after = dict(original.named_modules()), dict(model.named_modules())
    ranges: dict[str, Any] = {}
    for name in dict.fromkeys(name for fold in folds for name in fold.maps):
        new = after[name] if isinstance(after[name], LINEAR_MAPS) else after[f"{name}.1"]
        ranges[name] = channel_range(before[name]), channel_range(new)
    left = {fold.name: fold.reason for fold in folds if not fold.maps}
    spent = seconds([original, model], example, timing) if timing else None
    return Folding(model, *whole, exact, left, rows, ranges, None if spent is None else (spent[0], spent[1]))
