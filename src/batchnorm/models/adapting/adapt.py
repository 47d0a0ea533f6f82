"""Adapt: choose which statistics normalise on data from elsewhere, in every mode, with the way back."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from batchnorm.arguments import (
    SHARE,
    a_function,
    a_module,
    a_module_with_values,
    arguments,
    number,
    some_batches,
    whole,
    word,
)
from batchnorm.errors import BatchNormError, check
from batchnorm.layers import Mixture, Stored
from batchnorm.layers.choices.inference import Inference
from batchnorm.models.adapting.decide import FEWEST_LAYERS, Choice, decide, early_part, weigh
from batchnorm.models.adapting.evidence import ForwardFn, Shift, outputs_of, read, shift_of
from batchnorm.models.adapting.layers import Adapted, adapted_class, begin, end, write
from batchnorm.models.adapting.predictions import predictions
from batchnorm.models.batches import count_samples, numbered
from batchnorm.models.find import Model, batch_norm_layers, is_timms, tracking_layers
from batchnorm.models.modes import is_frozen
from batchnorm.models.recalibration.recalibrating import fixed_point
from batchnorm.models.state import held
from batchnorm.models.tables import LayerTable, as_text

if TYPE_CHECKING:
    from rich.console import Group

Mode = Literal["auto", "stored", "batch", "prior", "alpha", "example", "running", "early", "domain"]
IfSorted = Literal["refuse", "pool"]
Outputs = Literal["classes", "values"]


@dataclass(frozen=True)
class AdaptedLayer:
    """One layer: its shift and spread on the data (see `Shift`), and the weight of the data's statistics."""

    shift: Shift | None
    weight: float


@dataclass(frozen=True)
class Adaptation(Generic[Model]):
    """What `adapt` did: the model (the same object), the choice with its reason, a row a layer, the way back."""

    model: Model = field(repr=False)
    choice: Choice
    layers: dict[str, AdaptedLayer]
    frozen: tuple[str, ...] = ()

    def undo(self) -> None:
        """Give the layers back as they were; their own statistics were never touched."""
        unadapt(self.model)

    def __rich__(self) -> Group:
        from rich.console import Group

        header = ("layer", "shift (std)", "stored statistics are worth (samples)", "weight of the data")
        rows: list[tuple[str, ...]] = []
        for name, row in self.layers.items():
            found = ("", "") if row.shift is None else (f"{row.shift.shift**0.5:.3f}", f"{row.shift.prior:.3g}")
            rows.append((name or "(root)", *found, f"{row.weight:.2f}"))
        rows += [(name or "(root)", "frozen: unchanged", "", "") for name in self.frozen]
        return Group(LayerTable(header, rows, str(self.choice)))

    def __str__(self) -> str:
        return as_text(self)


@arguments(
    model=a_module_with_values,
    data=some_batches,
    mode=word(Mode),
    prior=number("0 or more samples", lambda v: v >= 0),
    weight=SHARE,
    memory=number("0 or more samples", lambda v: v >= 0),
    if_sorted=word(IfSorted),
    outputs=word(Outputs),
    max_batches=whole(1),
    forward_fn=a_function,
)
def adapt(
    model: Model,
    data: Iterable[Any] | None = None,
    mode: Mode = "auto",
    *,
    prior: float = 16.0,
    weight: float | None = None,
    memory: float = 64.0,
    if_sorted: IfSorted = "refuse",
    outputs: Outputs = "classes",
    max_batches: int | None = None,
    forward_fn: ForwardFn | None = None,
) -> Adaptation[Model]:
    """Let batch norm layers normalise with statistics that fit unlabelled data from another source.

    Example:
        >>> import torch
        >>> from batchnorm.models import adapt
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.ReLU())
        >>> elsewhere = torch.randn(256, 3, 8, 8) * 3 + 2
        >>> result = adapt(model, elsewhere.split(16))
        >>> result.choice.mode, bool(model(elsewhere).mean() < 0.5)
        ('early', True)
        >>> result.undo()

    The layers stay the same objects, of this package's classes until `undo`. They follow their
    adaptation whatever `.train()` and `.eval()` say, and gradients flow through what they compute.
    The source's statistics stay in the buffers and in the state_dict, unmoved.

    mode:
        "auto" reads the data and decides: "stored" where it is too little, sorted, hardly shifted, or where the
        predictions do not say that others serve; else "early" or "domain".
        "stored": the source's statistics.
        "batch": each batch's own (prediction-time batch norm).
        "prior": n samples at hand weigh n / (n + prior) beside the stored statistics.
        "alpha": the batch weighs `weight`, 0.5 unless given, whatever its size.
        "example": each example's own statistics weigh `weight`, 0.1 unless given.
        "running": as "prior", beside statistics that follow the stream: n samples move them by
        n / (n + memory).
        "domain": those of all the data (AdaBN), settled as `recalibrate` settles them.
        "early": the same in the first third of the layers, where appearance is and content hardly.
    Mixtures are exact: their variance holds the distance between the means.

    Args:
        model: changed until `undo`, in how its batch norm layers normalise.
        data: batches as the model will meet them, in their order; what they hold as in `recalibrate`. Needed
            for "auto", "early" and "domain", which keep them in memory.
        mode: as above.
        prior: samples that the stored statistics stand for, in "prior" and "running".
        weight: of the batch in "alpha", of the example in "example".
        memory: samples that the followed stream remembers, in "running".
        if_sorted: for "auto": "refuse" a stream whose neighbours are alike, or "pool" it, as the
            smaller number of samples that it is worth. Pool where the data is all there will be.
        outputs: for "auto": "classes" if an output `(N, 2 or more)` holds logits, whose predictions are
            evidence; "values" if it does not, as in regression. Other outputs are values in any case.
        max_batches: read no more than these.
        forward_fn: `forward_fn(model, batch)` for batches that the model cannot take as they are.

    Raises:
        BatchNormError: an unknown mode, a number out of range, no data where it is needed, a model
            without running statistics, under adaptation already, or with layers of other classes
            than torch's and this package's; the model is unchanged.

    Source: Schneider et al., "Improving robustness against common corruptions by covariate shift
    adaptation" (2020); Nado et al., "Evaluating prediction-time batch normalization" (2020); Li et
    al., "Revisiting batch normalization for practical domain adaptation" (2016); Summers and
    Dinneen, "Four Things Everyone Should Know to Improve Batch Normalization" (2020).
    """
    inference = _inference(mode, prior, weight, memory)
    layers, frozen = _layers(model)
    if mode not in ("auto", "early", "domain"):
        for layer in layers.values():
            begin(layer, inference, mode == "running")
        own = weight_of(inference)
        rows = {name: AdaptedLayer(None, own) for name in layers}
        return Adaptation(model, Choice(mode, f"as asked, {inference!r}"), rows, frozen)
    batches = list(itertools.islice(numbered(data if data is not None else (), "data"), max_batches))
    if not batches:
        raise BatchNormError(f"data must yield at least one batch for mode {mode!r}; there was none")
    with held(model):
        samples, stored = read(model, layers, batches, forward_fn)
    shifts = {name: shift_of(found, *_source(layers[name]), layers[name].eps) for name, found in samples.items()}
    choice = Choice(mode, "as asked, the statistics of all the data")
    if mode == "auto":
        choice = decide(samples, shifts, sum(count_samples(batch) for batch in batches), if_sorted)
    adapted = {"stored": [], "early": early_part(list(samples)), "domain": list(samples)}
    settled: dict[str, tuple[Tensor, Tensor]] = {}
    if choice.mode != "stored":
        with held(model):
            settled = fixed_point(model, batches, forward_fn, adapted[choice.mode])

    def use(mode: str) -> None:
        for name, layer in layers.items():
            begin(layer, Stored())
            if name in adapted[mode]:
                write(layer, *settled[name])

    try:
        if mode == "auto" and choice.mode != "stored":
            found = {"stored": stored}
            for tried in ("early", "domain")[len(samples) < FEWEST_LAYERS :]:
                use(tried)
                with held(model):
                    found[tried] = outputs_of(model, batches, forward_fn)
            choice = weigh(choice, predictions(found) if outputs == "classes" else None)
        use(choice.mode)
    except BaseException:
        unadapt(model)
        raise
    weights = dict.fromkeys(adapted[choice.mode], 1.0)
    rows = {name: AdaptedLayer(shifts.get(name), weights.get(name, 0.0)) for name in layers}
    return Adaptation(model, choice, rows, frozen)


@arguments(model=a_module)
def unadapt(model: Model) -> Model:
    """Undo `adapt` on a model, or on a copy of one, whose result is not at hand.

    Example:
        >>> import copy, torch
        >>> from batchnorm.models import adapt, unadapt
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
        >>> _ = adapt(model, mode="batch")
        >>> type(unadapt(copy.deepcopy(model))[0]) is torch.nn.BatchNorm1d
        True
    """
    for layer in batch_norm_layers(model).values():
        end(layer)
    return model


def _inference(mode: Mode, prior: float, weight: float | None, memory: float) -> Inference:
    check(weight is None or mode in ("alpha", "example"), "weight", f"None for mode {mode!r}", weight)
    if mode == "batch":
        return Mixture(weight=1.0, per="batch")
    if mode == "prior":
        return Mixture(prior=prior, per="batch")
    if mode == "running":
        return Mixture(prior=memory, per="batch")
    if mode == "alpha":
        return Mixture(weight=0.5 if weight is None else weight, per="batch")
    if mode == "example":
        return Mixture(weight=0.1 if weight is None else weight, per="example")
    return Stored()


def weight_of(inference: Inference) -> float:
    """The weight of the data, NaN where it depends on the batch."""
    if isinstance(inference, Stored):
        return 0.0
    return torch.nan if inference.weight is None else inference.weight


def _layers(model: nn.Module) -> tuple[dict[str, Any], tuple[str, ...]]:
    found: dict[str, Any] = dict(tracking_layers(model))
    if any(isinstance(layer, Adapted) for layer in found.values()):
        raise BatchNormError(
            "model must not be under adaptation already; call undo() of the earlier result, or unadapt"
        )
    frozen = tuple(name for name, layer in found.items() if is_frozen(layer))
    active = {name: layer for name, layer in found.items() if name not in frozen}
    if not active:
        raise BatchNormError("model must contain a batch norm layer that is not frozen; all are")
    for name, layer in active.items():
        if adapted_class(type(layer)) is None or isinstance(layer, LazyModuleMixin):
            way = "convert it to one of them first"
            if is_timms(layer):
                way = "batchnorm.interop.trainers.timm.convert takes timm's"
            raise BatchNormError(
                f"model must hold torch's or this package's batch norm layers; {name or '(root)'} is a "
                f"{type(layer).__name__}, whose own class would be lost: {way}"
            )
    return active, frozen


def _source(layer: Any) -> tuple[Tensor, Tensor]:
    """The statistics in use: the active bank's, if any."""
    stat = getattr(layer, "stat", lambda name: getattr(layer, name))
    return stat("running_mean").double(), stat("running_var").double()
