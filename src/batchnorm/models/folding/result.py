"""What `fold` did, and its table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from batchnorm.models.tables import LayerTable, as_text

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class FoldedLayer:
    """One layer: where it went, and how much its output on the example changed.

    went is "conv1", the paths of the maps that absorbed it, "affine" or "kept". The errors are those
    of the layer's output (of the maps' outputs, for a layer absorbed by maps after it), None when not
    asked for.
    """

    went: str
    max_abs_error: float | None = None
    max_rel_error: float | None = None


@dataclass(frozen=True)
class Folding:
    """The folded model and the proof.

    model is in eval; the one given is unchanged. max_abs_error is the largest difference of an output
    on the example, in the model's own dtype, and max_rel_error that divided by the largest output.
    exact_error is max_rel_error of the same fold in float64, where only a wrong fold is larger than
    rounding (NaN where the model cannot run in float64, for the reason in not_exact). left says why a
    layer was not absorbed.
    ranges holds the largest absolute weight of each output channel, before and after, of every map
    that absorbed something: what per-tensor quantisation has to cover. seconds are medians of a
    forward on the example, before and after, None when not timed.
    """

    model: nn.Module = field(repr=False)
    max_abs_error: float
    max_rel_error: float
    exact_error: float
    left: dict[str, str]
    layers: dict[str, FoldedLayer]
    ranges: dict[str, tuple[Tensor, Tensor]] = field(repr=False)
    seconds: tuple[float, float] | None = None
    not_exact: str = ""

    @property
    def speedup(self) -> float | None:
        """Seconds before over seconds after."""
        return None if self.seconds is None else self.seconds[0] / self.seconds[1]

    def __rich__(self) -> Group:
        from rich.console import Group

        absorbed = len(self.layers) - len(self.left)
        asked = any(row.max_abs_error is not None for row in self.layers.values())
        header = ["layer", "went into", "weights before", "after"]
        header += ["difference"] * asked + ["reason"] * bool(self.left)
        rows: list[tuple[str, ...]] = []
        for name, row in self.layers.items():
            maps = [m for m in row.went.split(", ") if m in self.ranges]
            before, after = ("\n".join(spread(self.ranges[m][i]) for m in maps) for i in (0, 1))
            gap = ["" if row.max_abs_error is None else f"{row.max_abs_error:.1e}"] if asked else []
            reason = [self.left.get(name, "")] * bool(self.left)
            rows.append((name or "(root)", "\n".join(maps) or row.went, before, after, *gap, *reason))
        table = LayerTable(
            header,
            rows,
            f"Folded {absorbed} of {len(self.layers)} batch norm layers",
            "weights: the largest of an output channel, max / median over channels",
            names=(0, 1),
            texts=(len(header) - 1,) if self.left else (),
        )
        lines = [f"outputs differ by {self.max_abs_error:.1e}, {self.max_rel_error:.1e} of the largest"]
        lines[0] += f"; in float64 by {self.exact_error:.0e}" if self.exact_error == self.exact_error else ""
        if self.not_exact:
            lines.append(f"not checked in float64, in which the model does not run: {self.not_exact}")
        if self.seconds is not None:
            before, after = (f"{1e3 * s:.2f} ms" for s in self.seconds)
            lines.append(f"forward on the example: {before} before, {after} after ({self.speedup:.2f} x)")
        return Group(table, *lines)

    def __str__(self) -> str:
        return as_text(self)


def spread(ranges: Tensor) -> str:
    """The largest and the median channel."""
    return f"{float(ranges.max()):.3g} / {float(ranges.median()):.3g}"
