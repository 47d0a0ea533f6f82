"""What a caller should know of a translation: what was not carried, not held, or is likely to be meant otherwise."""

from __future__ import annotations

from collections.abc import Mapping

from batchnorm.interop.pairing import Pair
from batchnorm.interop.statistics import torch_momentum
from batchnorm.interop.weights import Weights


class Notes:
    """What the caller should know, gathered over the layers."""

    def __init__(self) -> None:
        self.biased: list[str] = []
        self.negative: list[str] = []
        self.momentum: list[str] = []
        self.unpaired: list[str] = []
        self.unfilled: list[str] = []
        self.flattened: list[str] = []

    def left(self, have: Weights, want: Weights, pairs: list[Pair]) -> None:
        """Note the layers without a partner."""
        used = {p.source.name for p in pairs}, {p.target.name for p in pairs}
        self.unpaired = [x.name for x in have.layers if x.name not in used[0]]
        self.unfilled = [x.name for x in want.layers if x.name not in used[1]]

    def sentences(
        self, have: Weights, want: Weights, settings: Mapping[str, tuple[float | None, float | None]], held: set[str]
    ) -> tuple[str, ...]:
        """One sentence a matter."""
        said: list[str] = []
        short = [w.format.partition(" ")[0] for w in (have, want)]
        if self.biased:
            said.append(
                f"The running variance is carried as it is: {short[0]} stores it {have.variance}, {short[1]} "
                f"would have stored it {want.variance}, a factor (n - 1) / n apart. Give count=N*H*W to change it."
            )
        for what, names in (
            ("The running variance is negative, so the output is NaN, in", self.negative),
            ("The target keeps its own momentum in", self.momentum),
            ("If a flatten comes before it, give flatten={name: (C, H, W)} for", self.flattened),
            ("Not carried over, for want of a partner:", self.unpaired),
            ("Left as they were in the target, for want of a partner:", self.unfilled),
        ):
            if names:
                said.append(f"{what} {_few(names)}.")
        loose = {value for name, value in settings.items() if name not in held}
        for eps, momentum in sorted(loose, key=str):
            said.append(_build_with(want.format, eps, momentum))
        return tuple(said)


def _build_with(form: str, eps: float | None, momentum: float | None) -> str:
    """What to build the target's layers with, in its own words, where its format does not hold that."""
    words = {"flax": ("epsilon", "momentum"), "haiku": ("eps", "decay_rate"), "keras": ("epsilon", "momentum")}
    first, second = words.get(form, ("eps", "momentum"))
    turned = momentum if form == "torch" or momentum is None else torch_momentum(momentum)
    parts = [f"{word}={value:g}" for word, value in ((first, eps), (second, turned)) if value is not None]
    if not parts:
        return f"Neither side records eps and momentum: build the target's layers with the source's ({form})."
    return f"The target's format holds no eps and momentum: build its batch norm layers with {', '.join(parts)}."


def _few(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
