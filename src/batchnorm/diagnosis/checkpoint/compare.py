"""Two checkpoints: what moved, what did not, and what one of them lacks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from batchnorm.diagnosis.checkpoint.evidence import CheckpointEvidence, StoredLayer
from batchnorm.diagnosis.findings import Rule, Said
from batchnorm.files.states import bare
from batchnorm.models.batches import counted

PREFIXES = ("model.", "base_model.model.", "ema_model.", "student.", "teacher.", "ema.")


@dataclass
class Move:
    """One layer in both files: how far its statistics and its weights moved.

    mean is the root mean square shift in the first file's standard deviations, var the root mean
    square log ratio of the variances, affine the largest change of weight and bias.
    """

    name: str
    mean: float
    var: float
    affine: float
    updates: float | None

    @property
    def still(self) -> bool:
        """Whether the statistics are the same to the bit."""
        return self.mean == 0 and self.var == 0


@dataclass
class Comparison:
    """The second file, the layers that both share, and those it lacks."""

    second: CheckpointEvidence
    moves: dict[str, Move] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    weights_moved: bool = False


def compare(first: CheckpointEvidence, second: CheckpointEvidence) -> Comparison:
    """Match layers by name, with or without the prefix a wrapper adds."""
    found = Comparison(second)
    other = {_bare(name): layer for name, layer in second.layers.items()}
    for name, layer in first.layers.items():
        partner = other.get(_bare(name))
        before, after = layer.statistics, None if partner is None else partner.statistics
        if partner is None or after is None:
            found.missing.append(name)
        elif before is not None and before.shape != after.shape:
            found.reshaped.append(name)
        elif before is not None:
            found.moves[name] = _move(layer, partner, before, after)
    there = {_bare(name): values for name, values in second.others.items()}
    pairs = ((values, there.get(_bare(name))) for name, values in first.others.items())
    rest = any(b is not None and a.shape == b.shape and not torch.equal(a, b) for a, b in pairs)
    found.weights_moved = rest or any(move.affine > 0 for move in found.moves.values())
    return found


def _bare(name: str) -> str:
    name, changed = bare(name), True
    while changed:
        changed = False
        for prefix in PREFIXES:
            if name.startswith(prefix):
                name, changed = name[len(prefix) :], True
    return name


def _move(a: StoredLayer, b: StoredLayer, before: Tensor, after: Tensor) -> Move:
    (mean, var), (new_mean, new_var) = before, after
    scale = (var.clamp_min(0) + 1e-5).sqrt()
    affine = max(_largest(a.weight, b.weight), _largest(a.bias, b.bias))
    updates = None if a.counter is None or b.counter is None else b.counter - a.counter
    same = torch.equal(before, after)
    shift = 0.0 if same else float(((new_mean - mean) / scale).square().mean().sqrt())
    ratio = ((new_var.clamp_min(0) + 1e-5) / scale.square()).log()
    return Move(a.name, shift, 0.0 if same else float(ratio.square().mean().sqrt()), affine, updates)


def _largest(a: Tensor | None, b: Tensor | None) -> float:
    return 0.0 if a is None or b is None or a.shape != b.shape or not a.numel() else float((a - b).abs().max())


def missing(c: Comparison) -> Said:
    """Statistics the second file lacks."""
    for name in c.missing:
        yield (
            name,
            f"{c.second.path.name} has no running statistics of this layer: loading it keeps whatever the model "
            "has, which is not what it was trained with",
            "save the buffers too: every key of model.state_dict() that ends in running_mean or running_var",
        )


def reshaped(c: Comparison) -> Said:
    """Layers with other shapes."""
    for name in c.reshaped:
        yield name, "the two files have a different number of channels", "compare checkpoints of one architecture"


def left_behind(c: Comparison) -> Said:
    """Weights that moved and statistics that did not."""
    if not c.weights_moved:
        return
    for name, move in c.moves.items():
        if move.still:
            yield (
                name,
                "the weights moved and the running statistics did not: an average of parameters() only, a layer "
                "frozen on purpose, or momentum 0",
                "batchnorm.recalibrate(model, loader), unless the layer was frozen with batchnorm.freeze",
            )


def alone(c: Comparison) -> Said:
    """Statistics that moved while no weight did."""
    if c.weights_moved:
        return
    for name, move in c.moves.items():
        if not move.still:
            after = "" if not move.updates else f" in {counted(int(move.updates), 'update')}"
            if move.updates is not None and move.updates < 0:
                after = f" and their counter went back by {-move.updates:g}"
            yield (
                name,
                f"the statistics moved{after} ({move.mean:.2f} standard deviations) and no weight did: recalibration, "
                "or a forward in train mode that nobody meant (a summary, no_grad without eval())",
                "if nobody recalibrated, keep the first file; call model.eval() before such forwards",
            )


COMPARISON_RULES: tuple[Rule, ...] = (
    Rule("BN221", "statistics missing from the other file", "error", missing),
    Rule("BN224", "other shapes", "error", reshaped),
    Rule("BN222", "weights moved, statistics did not", "warning", left_behind),
    Rule("BN223", "statistics moved, weights did not", "note", alone),
)
