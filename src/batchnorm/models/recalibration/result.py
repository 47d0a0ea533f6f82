"""What a recalibration did, layer by layer, and the way back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from batchnorm.models.batches import counted
from batchnorm.models.recalibration.correlation import ENOUGH, student
from batchnorm.models.recalibration.totals import FEWEST_BATCHES
from batchnorm.models.state import Buffers, restore
from batchnorm.models.tables import LayerTable, as_text

if TYPE_CHECKING:
    from rich.console import Group

# What layers normalise with while they are measured: their own new statistics, or each batch's.
Upstream = Literal["population", "batch"]
# A smaller move than this many standard deviations, or than the error bars allow, changes nothing.
NEGLIGIBLE = 0.05
_SURE = 3.0
_COLUMNS = (
    "mean moved by: in old standard deviations; +-: the sampling error of what is stored now; residual: from what the "
    "layer receives at inference on these data"
)


@dataclass(frozen=True)
class RecalibratedLayer:
    """One layer's result.

    count is the number of values per channel. mean_shift, and the shift per channel, is what the
    mean moved by, in units of the old `sqrt(running_var + eps)`; var_ratio the geometric mean of
    new over old `running_var + eps`; moved both together, in standard deviations. standard_error
    is the sampling error of what is stored now, in units of the new standard deviation, mean and
    standard deviation together (NaN below 8 batches); per channel those of mean and variance in
    their own units. residual is the distance between what is stored now and the moments of what
    the layer receives at inference on these data (NaN if not measured). All are root mean squares
    over channels. independent is how many independent batches the batches were worth; heavy_tailed
    says that single batches make the spread of the variances, whose error bar is then too small.
    """

    count: int
    mean_shift: float
    var_ratio: float
    moved: float
    standard_error: float
    residual: float
    independent: float
    heavy_tailed: bool
    mean_shift_per_channel: Tensor = field(repr=False)
    mean_error_per_channel: Tensor = field(repr=False)
    var_error_per_channel: Tensor = field(repr=False)


@dataclass(frozen=True)
class Recalibration:
    """What `recalibrate` did: data read, a row a layer, what was left alone, and `undo()`.

    samples and batches counted; offered is how many samples the loader had, None if it does not
    say and was not read to its end. exchangeable is False if the order of the batches matters
    (sorted data) or the samples of a batch are alike (grouped data); None below 8 batches. Whether
    the error bars hold is `error_bars_hold`. skipped names the batches left out because they were not finite.
    in_stored_order says that the loader is not known to shuffle, which matters where it was not read to the end.
    converged is False if a layer used several times did not settle (see its residual). plan is what was
    said before a part of the data was read, "" where nothing was left out; spread says that the part
    was drawn from all of the loader; forwards how often the data went through the model. drawn is how
    far apart, in standard deviations, two forwards of one batch are where the model draws random
    numbers in eval mode; converged is False then.
    """

    samples: int
    batches: int
    offered: int | None
    upstream: Upstream
    layers: dict[str, RecalibratedLayer]
    unreached: tuple[str, ...]
    frozen: tuple[str, ...]
    skipped: tuple[tuple[int, str], ...]
    exchangeable: bool | None
    sorted: bool
    grouped: bool
    converged: bool
    passes: int
    in_stored_order: bool
    plan: str
    spread: bool
    forwards: float
    drawn: float
    _before: Buffers = field(repr=False)

    def undo(self) -> None:
        """Put back the statistics from before, to the bit."""
        restore(self._before)

    @property
    def residual(self) -> dict[str, float]:
        """Per layer, the distance of the stored statistics from what inference gives, in standard deviations."""
        return {name: row.residual for name, row in self.layers.items()}

    @property
    def standard_error(self) -> float:
        """Of the worst layer; NaN below 8 batches."""
        return max((row.standard_error for row in self.layers.values()), key=_nan_last, default=math.nan)

    @property
    def quantile(self) -> float:
        """Times this, a standard error is half of a 95 % interval: Student's factor, 2.36 with 8 batches."""
        return student(min((row.independent for row in self.layers.values()), default=0.0) - 1)

    @property
    def error_bars_hold(self) -> bool | None:
        """Whether 95 % intervals can be relied on; None where that cannot be known.

        Not known below 8 batches, and where only the first data were read of a loader that is not known to shuffle.
        False where the batches are too few to know how long they are correlated (fewer than 50 times as
        long), where their order matters in a way that correlation does not explain, and where tails are heavy.
        """
        if self.batches < FEWEST_BATCHES or (self._first_in_stored_order and not self._correlated_for_too_long):
            return None
        return not (self._correlated_for_too_long or any(row.heavy_tailed for row in self.layers.values()))

    @property
    def _first_in_stored_order(self) -> bool:
        return self.samples != self.offered and self.in_stored_order and not self.spread

    @property
    def _correlated_for_too_long(self) -> bool:
        few = min((row.independent for row in self.layers.values()), default=float(self.batches))
        return (few < ENOUGH and few < 0.999 * self.batches) or (self.sorted and few >= 0.999 * self.batches)

    @property
    def needed(self) -> bool:
        """Whether any layer moved by more than is negligible and more than its error bar explains."""
        return any(
            row.moved > NEGLIGIBLE and not row.moved <= _SURE * row.standard_error for row in self.layers.values()
        )

    @property
    def notes(self) -> list[str]:
        """What the table does not say, a sentence each."""
        found = []
        for names, why in ((self.unreached, "never reached"), (self.frozen, "frozen")):
            if names:
                found.append(f"Unchanged, {why}: {', '.join(name or '(root)' for name in names)}.")
        if self.layers and not self.needed:
            found.append("The statistics were fine: nothing needed doing.")
        if self.batches < FEWEST_BATCHES:
            found.append(f"{counted(self.batches, 'batch', 'batches')}: no error bar, which takes {FEWEST_BATCHES}.")
        if self.plan:
            found.append(f"A part of the data was read. {self.plan}")
        elif self.offered is not None and self.samples < self.offered:
            found.append(f"{self.samples} of the {self.offered} samples offered were enough, or were asked for.")
        if self._first_in_stored_order:
            found.append(
                "They were the first of a loader that is not known to shuffle: shuffle, if their order means anything."
            )
        if self._correlated_for_too_long:
            found.append(
                "The order of the batches matters (sorted data?): the error bars do not hold; shuffle the data."
            )
        elif self.sorted:
            worth = min(row.independent for row in self.layers.values())
            found.append(f"The order of the batches matters: they are worth {worth:.0f} independent ones.")
        heavy = [name or "(root)" for name, row in self.layers.items() if row.heavy_tailed]
        if heavy:
            found.append(
                f"Single batches make the spread of the variance (heavy tails?) in {', '.join(heavy[:3])}"
                f"{f' and {len(heavy) - 3} more' if len(heavy) > 3 else ''}: its error bar is too small."
            )
        if self.grouped:
            found.append(
                "Samples within a batch are alike (grouped data?): take the error bars as rough; shuffle the data."
            )
        if self.skipped:
            where = ", ".join(f"{number} (layer {layer or '(root)'})" for number, layer in self.skipped[:10])
            were = counted(len(self.skipped), "batch was", "batches were")
            found.append(f"{were} not finite and left out: {where}.")
        if self.drawn:
            found.append(
                f"The model draws random numbers in eval mode (dropout that is always on?): two forwards of one batch "
                f"differ by {self.drawn:.2g} standard deviations, so no statistics are reproduced exactly."
            )
        elif not self.converged:
            worst = max(self.residual.values())
            found.append(
                f"Layers used several times have not settled after {self.passes} passes; residual {worst:.2g}."
            )
        return found

    def __rich__(self) -> Group:
        from rich.console import Group

        title = f"Recalibrated {counted(len(self.layers), 'layer')} on {counted(self.samples, 'sample')}"
        header = (
            "layer",
            "values a channel",
            "mean moved by (std)",
            "variance new/old",
            "+- (std)",
            "residual (std)",
        )
        rows: list[tuple[str, ...]] = []
        for name, row in self.layers.items():
            bar = "?" if math.isnan(row.standard_error) else f"{row.standard_error:.3f}"
            rest = "" if math.isnan(row.residual) else f"{row.residual:.1e}"
            cells = (f"{row.count}", f"{row.mean_shift:.3f}", f"{row.var_ratio:.3f}", bar, rest)
            rows.append((name or "(root)", *cells))
        return Group(LayerTable(header, rows, title, _COLUMNS), *self.notes)

    def __str__(self) -> str:
        return as_text(self)


def summary(result: Recalibration) -> dict[str, Any]:
    """The result as numbers and strings, for JSON; NaN where something was not measured."""
    names = ("count", "mean_shift", "var_ratio", "moved", "standard_error", "residual")
    layers = {name: {key: getattr(row, key) for key in names} for name, row in result.layers.items()}
    plain = (
        "samples",
        "batches",
        "offered",
        "upstream",
        "exchangeable",
        "sorted",
        "grouped",
        "converged",
        "needed",
        "plan",
        "forwards",
    )
    return {
        **{key: getattr(result, key) for key in plain},
        "unreached": list(result.unreached),
        "frozen": list(result.frozen),
        "skipped": [list(row) for row in result.skipped],
        "layers": layers,
    }


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value
