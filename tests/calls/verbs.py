"""Every public verb: how it is called rightly, and of which kind each of its arguments is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import batchnorm
from batchnorm import interop, kernels, models
from batchnorm import layers as choices
from batchnorm.interop.trainers import (
    accelerate,
    averages,
    fields,
    lightning,
    loaders,
    schedule_free,
    torchmetrics,
    transformers,
    ultralytics,
)
from batchnorm.interop.trainers import timm as with_timm
from tests.calls import good, wrong


@dataclass
class Verb:
    """A call that works, made anew each time, and the wrong values that each argument can have.

    legal names pairs of argument and label that are no mistakes here: the call works.
    """

    name: str
    call: Callable[..., Any]
    given: dict[str, Callable[[], Any]]
    kinds: dict[str, dict[str, Callable[[], Any]]]
    legal: set[str] = field(default_factory=set)
    # What an argument is called in the message, where that is not its name.
    says: dict[str, str] = field(default_factory=dict)


class Accelerator:
    """As much of accelerate's as the adapter uses."""

    is_local_main_process = False

    def unwrap_model(self, model):
        return model


class Optimizer:
    """As much of a schedule-free optimizer as the adapter uses."""

    def __init__(self):
        self.param_groups, self.mode = [{"train_mode": True}], "train"

    def train(self):
        self.mode = "train"

    def eval(self):
        self.mode = "eval"


def entered(context):
    """A context, entered and left."""

    def call(**given):
        with context(**given):
            pass

    return call


def choice(kind, given=None, legal=(), **kinds):
    """A choice of a layer."""
    return Verb(kind.__name__, kind, given or {}, kinds, set(legal))


def layer(kind, legal=(), **given):
    """A layer's constructor."""
    lazy = kind.__name__.startswith("Lazy")
    kinds = {
        "num_features": wrong.WHOLE,
        "eps": wrong.NUMBER,
        "momentum": wrong.SHARE,
        "affine": wrong.FLAG,
        "track_running_stats": wrong.FLAG,
        "device": wrong.DEVICE,
        "dtype": wrong.DTYPE,
        "bias": wrong.FLAG,
        "method": wrong.WORD,
        "activation": {k: v for k, v in wrong.WORD.items() if k != "None"},
        "negative_slope": wrong.NUMBER,
        "extent": wrong.CHOICE,
        "estimator": wrong.CHOICE,
        "coupling": wrong.CHOICE,
        "inference": wrong.CHOICE,
        "policy": wrong.CHOICE,
    }
    if lazy:
        del kinds["num_features"]
    else:
        kinds["inplace"] = wrong.FLAG
        kinds["channel_axis"] = {k: v for k, v in wrong.WHOLE.items() if "negative integer" not in k}
        given = {"num_features": lambda: 4, **given}
    return Verb(kind.__name__, kind, given, kinds, {"negative_slope: a negative number", *legal})


def run(kind, training=True, **options):
    """A layer's forward."""

    def call(**given):
        return kind(3, **options).train(training)(**given)

    mode = "train" if training else "eval"
    return Verb(
        f"{kind.__name__} in {mode}{''.join(map(str, options.values()))}",
        call,
        {"input": good.x},
        {
            "input": wrong.IMAGES,
            "mask": wrong.MASK,
            "weights": wrong.WEIGHTS,
            "lengths": wrong.LENGTHS,
            "residual": {
                k: v for k, v in wrong.IMAGES.items() if k not in ("None", "a scalar", "one axis", "wrong rank")
            },
        },
        {
            "residual: integers",
            "residual: uint8",
            "residual: float64",
            "residual: booleans",
            "residual: one value per channel",
        }
        | ({"input: one value per channel"} if not training else set()),
    )


def run_fault(verb, *labels):
    """The same verb with some pairs legal."""
    verb.legal |= set(labels)
    return verb


_HOLD = {"model": good.network}
_OURS = {"model": good.ours}
MODEL = wrong.MODEL | wrong.WITHOUT_LAYERS
ON_DATA = MODEL | wrong.WITHOUT_VALUES | wrong.RUN

RECALIBRATE = Verb(
    "recalibrate",
    models.recalibrate,
    {"model": good.network, "loader": good.batches, "progress": lambda: False},
    {
        "model": ON_DATA,
        "loader": wrong.BATCHES,
        "forward_fn": wrong.CALLED,
        "variance": wrong.WORD,
        "upstream": wrong.WORD,
        "exact": wrong.FLAG,
        "until": wrong.NUMBER,
        "max_samples": wrong.WHOLE,
        "select": wrong.NAMES | {"raises": lambda: wrong._raises, "an empty list": list},
        "bank": {k: v for k, v in wrong.WORD.items() if k != "None"},
        "resume": {k: v for k, v in wrong.FILE.items() if k not in ("None", "nothing there")}
        | {"in no folder": lambda: good.FOLDER / "none" / "x"},
        "progress": wrong.FLAG,
        "device": wrong.DEVICE | {"meta": lambda: "meta"},
        "process_group": wrong.GROUP,
        "apply_to": {k: v for k, v in MODEL.items() if k != "None"},
        "channels_last": wrong.FLAG,
        "autocast": wrong.DTYPE,
        "memory": wrong.WHOLE,
    },
)
DIAGNOSE = Verb(
    "diagnose",
    batchnorm.diagnose,
    {"model": good.network, "loader": good.batches, "metric": lambda: good.metric, "progress": lambda: False},
    {
        "model": ON_DATA | wrong.WITHOUT_SHAPES | {"gives None": lambda: wrong.Odd(lambda y: None)},
        "loader": wrong.BATCHES,
        "metric": wrong.METRIC,
        "forward_fn": wrong.CALLED | {"gives None": lambda: lambda model, batch: model(batch[0]) and None},
        "eval_loader": {k: v for k, v in wrong.BATCHES.items() if k != "None"},
        "attribution": wrong.FLAG,
        "budget": wrong.WHOLE,
        "higher_is_better": wrong.FLAG,
        "progress": wrong.FLAG,
    },
    # What the network makes of it is reported.
    {"eval_loader: not finite"},
)
AT_ONCE = {
    k: wrong.BATCHES[k]
    for k in (
        "a number",
        "a path",
        "one tensor",
        "one numpy array",
        "a dataset",
        "one dict",
        "the model",
        "a class",
        "an empty list",
    )
}
RECALIBRATE_OPTIONS = {"until": wrong.NUMBER, "nonesuch": wrong.ANYTHING}

VERBS = [
    RECALIBRATE,
    DIAGNOSE,
    Verb(
        "update_bn",
        models.update_bn,
        {"loader": good.batches, "model": good.network},
        {"loader": wrong.BATCHES, "model": wrong.MODEL | wrong.WITHOUT_VALUES | wrong.RUN, "device": wrong.DEVICE},
    ),
    Verb(
        "adapt",
        models.adapt,
        {"model": good.network, "data": good.batches, "mode": lambda: "domain"},
        {
            "model": ON_DATA,
            "data": {k: v for k, v in wrong.BATCHES.items() if k != "not finite"}
            | {"not finite": wrong.BATCHES["not finite"]},
            "mode": wrong.WORD,
            "prior": wrong.NUMBER,
            "weight": wrong.SHARE,
            "memory": wrong.NUMBER,
            "passes": wrong.WHOLE,
            "if_sorted": wrong.WORD,
            "outputs": wrong.WORD,
            "max_batches": wrong.WHOLE,
            "forward_fn": wrong.CALLED,
        },
    ),
    Verb("unadapt", models.unadapt, _HOLD, {"model": wrong.MODEL}),
    Verb(
        "convert",
        models.convert,
        _HOLD,
        {
            "model": MODEL,
            "method": wrong.WORD,
            "count": wrong.WHOLE,
            "custom": wrong.WORD,
            "estimator": wrong.CHOICE,
            "extent": wrong.CHOICE,
            "coupling": wrong.CHOICE,
            "inference": wrong.CHOICE,
            "policy": wrong.CHOICE,
            "nonesuch": wrong.ANYTHING,
        },
    ),
    Verb(
        "to_stock",
        models.to_stock,
        _OURS,
        {"model": wrong.MODEL, "bank": {k: v for k, v in wrong.WORD.items() if k != "None"}},
    ),
    Verb(
        "fold",
        models.fold,
        {"model": good.network, "example_input": good.x, "timing": lambda: 0},
        {
            "model": ON_DATA | wrong.WITHOUT_SHAPES,
            "example_input": wrong.EXAMPLE,
            "rest": wrong.WORD,
            "padding": wrong.WORD,
            "layers": wrong.FLAG,
            "timing": wrong.WHOLE,
        },
    ),
    Verb(
        "fuse_activations",
        models.fuse_activations,
        {"model": good.ours, "example_input": good.x, "progress": lambda: False},
        {
            "model": MODEL | {"of torch's layers": good.network},
            "example_input": {k: v for k, v in wrong.EXAMPLE.items() if k != "None"},
            "progress": wrong.FLAG,
        },
        # Run only where torch.fx cannot trace the model.
        {
            f"example_input: {label}"
            for label in (
                "uint8",
                "float64",
                "wrong channels",
                "wrong rank",
                "two arguments",
                "another name",
                "on the meta device",
            )
        },
    ),
    Verb(
        "separate_calls",
        models.separate_calls,
        {"model": good.network, "loader": good.batches},
        {
            "model": ON_DATA | wrong.WITHOUT_SHAPES,
            "loader": wrong.BATCHES,
            "forward_fn": wrong.CALLED,
        },
        {"loader: not finite", "loader: a later batch of wrong channels", "loader: raises"},
    ),
    Verb("track", models.track, _HOLD, {"model": MODEL}),
    Verb("freeze", models.freeze, _HOLD, {"model": MODEL, "affine": wrong.FLAG}),
    Verb("unfreeze", models.unfreeze, _HOLD, {"model": MODEL, "affine": wrong.FLAG}),
    Verb("is_frozen", models.is_frozen, {"layer": lambda: nn.BatchNorm1d(2)}, {"layer": wrong.MODEL}),
    Verb("pause", entered(models.pause), _HOLD, {"model": MODEL}),
    Verb("accumulate", entered(models.accumulate), _OURS, {"model": MODEL, "renorm": wrong.FLAG}),
    Verb(
        "bank",
        entered(models.bank),
        {**_OURS, "name": lambda: "target"},
        {"model": MODEL, "name": wrong.WORD, "own_affine": wrong.FLAG},
        {"name: an unknown word"},
    ),
    Verb("mode", entered(models.mode), {**_HOLD, "train": lambda: False}, {"model": wrong.MODEL, "train": wrong.FLAG}),
    Verb(
        "masked",
        entered(models.masked),
        {**_OURS, "mask": lambda: torch.ones(8, 6, 6, dtype=torch.bool)},
        {"model": MODEL, "mask": wrong.MASK, "lengths": wrong.LENGTHS, "weights": wrong.WEIGHTS},
        # Held against the input, which comes later.
        {"mask: of other samples", "mask: of other size", "mask: with the channels"},
    ),
    Verb(
        "union",
        lambda model, first, second, forward_fn=None: models.union(model, first, second, forward_fn=forward_fn),
        {"model": lambda: good.network().eval(), "first": good.x, "second": good.x},
        {"model": wrong.MODEL | wrong.RUN, "first": wrong.IMAGES, "second": wrong.IMAGES, "forward_fn": wrong.CALLED},
        # torch.cat makes them what the other input is.
        {f"{name}: {label}" for name in ("first", "second") for label in ("uint8", "integers", "booleans")},
        {"first": "inputs", "second": "inputs"},
    ),
    Verb("batch_norm_layers", models.batch_norm_layers, _HOLD, {"model": wrong.MODEL}),
    Verb("center_weights", models.center_weights, _HOLD, {"model": wrong.MODEL}),
    Verb(
        "parameter_groups",
        models.parameter_groups,
        {**_HOLD, "weight_decay": lambda: 1e-4},
        {"model": MODEL, "weight_decay": wrong.NUMBER, "gamma": wrong.NUMBER, "beta": wrong.NUMBER},
    ),
    Verb("affine_penalty", models.affine_penalty, _HOLD, {"model": MODEL}),
    Verb(
        "Centred",
        lambda weight: models.Centred()(weight),
        {"weight": lambda: torch.ones(2, 3)},
        {"weight": wrong.TENSOR},
    ),
    Verb(
        "ChannelAffine",
        models.ChannelAffine,
        {"weight": lambda: torch.ones(3), "bias": lambda: torch.ones(3)},
        {
            "weight": wrong.TENSOR | {"of two axes": lambda: torch.ones(3, 3)},
            "bias": wrong.TENSOR,
            "channel_axis": wrong.WHOLE,
        },
        {"channel_axis: a negative integer"},
    ),
    Verb(
        "rank_report",
        models.rank_report,
        _HOLD,
        {"model": MODEL | wrong.WITHOUT_VALUES | wrong.WITHOUT_SHAPES, "group": wrong.GROUP},
    ),
    Verb(
        "sync_statistics",
        models.sync_statistics,
        _HOLD,
        {"model": MODEL | wrong.WITHOUT_VALUES | wrong.WITHOUT_SHAPES, "group": wrong.GROUP},
    ),
    Verb(
        "watch",
        entered(batchnorm.watch),
        _HOLD,
        {
            "model": MODEL | wrong.WITHOUT_VALUES | wrong.WITHOUT_SHAPES,
            "optimizer": {k: v for k, v in wrong.ANYTHING.items() if k != "None"}
            | {"a class": lambda: torch.optim.SGD},
            "every": wrong.WHOLE,
            "to": {k: v for k, v in wrong.NEW_FILE.items() if k != "None"},
            "steps": wrong.WHOLE,
            "compare_processes": wrong.FLAG,
        },
    ),
    Verb(
        "inspect_checkpoint",
        batchnorm.inspect_checkpoint,
        {"path": good.checkpoint},
        {
            "path": wrong.FILE,
            "other": {k: v for k, v in wrong.FILE.items() if k != "None"},
            "key": {k: v for k, v in wrong.WORD.items() if k not in ("None", "an empty word")},
        },
    ),
    Verb(
        "lint",
        batchnorm.lint,
        {"path": good.source},
        {
            "path": {k: v for k, v in wrong.FILE.items() if k not in ("empty", "a list", "cut off")}
            | {
                "a list of nothing": list,
                "a list of what is not there": lambda: ["x.py"],
                "a list of numbers": lambda: [3],
            },
            "select": wrong.NAMES,
            "ignore": wrong.NAMES,
        },
        {"path: a folder"},
    ),
    Verb(
        "Report.to_html",
        lambda path: batchnorm.lint(good.source()).to_html(path),
        {"path": lambda: good.FOLDER / "r.html"},
        {"path": wrong.NEW_FILE},
    ),
    Verb(
        "Report.to_json",
        lambda path: batchnorm.lint(good.source()).to_json(path),
        {"path": lambda: good.FOLDER / "r.json"},
        {"path": wrong.NEW_FILE},
    ),
    Verb("methods", batchnorm.methods, {}, {"nonesuch": wrong.ANYTHING}),
    Verb(
        "recipe_for",
        choices.recipe_for,
        {},
        {"method": wrong.WORD, "estimator": wrong.CHOICE, "nonesuch": wrong.ANYTHING},
    ),
    Verb(
        "forward_together",
        batchnorm.forward_together,
        {"layers": lambda: [batchnorm.BatchNorm2d(3)], "inputs": lambda: [good.x()]},
        {
            "layers": {
                "None": lambda: None,
                "a layer": lambda: batchnorm.BatchNorm2d(3),
                "words": lambda: ["a"],
                "none": list,
                "a number": lambda: 3,
            },
            "inputs": {
                "None": lambda: None,
                "words": lambda: ["a"],
                "none": list,
                "two": lambda: [good.x(), good.x()],
                "a number": lambda: 3,
                "numpy": lambda: [good.x().numpy()],
                "wrong channels": lambda: [torch.ones(8, 5, 2, 2)],
            },
        },
        says={"inputs": "input"},
    ),
    # Layers ----------------------------------------------------------------------------------------------------
    layer(choices.BatchNorm),
    layer(choices.BatchNorm1d),
    layer(choices.BatchNorm2d),
    layer(choices.BatchNorm3d),
    layer(choices.LazyBatchNorm1d),
    layer(choices.LazyBatchNorm2d),
    layer(choices.LazyBatchNorm3d),
    run(choices.BatchNorm2d),
    run(choices.BatchNorm2d, training=False),
    run_fault(run(choices.BatchNorm), "input: wrong rank"),
    run(choices.BatchNorm2d, method="ghost"),
    run(choices.BatchNorm2d, method="renorm"),
    Verb(
        "BatchNorm1d",
        lambda input, **more: choices.BatchNorm1d(3)(input, **more),
        {"input": lambda: torch.randn(8, 3, 6)},
        {"input": wrong.IMAGES, "lengths": wrong.LENGTHS, "weights": wrong.WEIGHTS},
        {"input: wrong rank"},
    ),
    Verb(
        "LazyBatchNorm2d",
        lambda input: choices.LazyBatchNorm2d()(input),
        {"input": good.x},
        {"input": wrong.IMAGES},
        {"input: wrong channels"},
    ),
    Verb(
        "attach",
        lambda before: choices.BatchNorm2d(4, method="cbn").attach(before),
        {"before": lambda: nn.Conv2d(3, 4, 3)},
        {"before": wrong.MODEL | {"of other channels": lambda: nn.Conv2d(3, 5, 3)}},
    ),
    # Choices ---------------------------------------------------------------------------------------------------
    choice(
        choices.EMA,
        decay=wrong.SHARE,
        debias=wrong.FLAG,
        sigma=wrong.FLAG,
        total=wrong.FLAG,
        correction=wrong.WHOLE,
        nonesuch=wrong.ANYTHING,
    ),
    choice(choices.Cumulative, sigma=wrong.FLAG, total=wrong.FLAG, correction=wrong.WHOLE, nonesuch=wrong.ANYTHING),
    choice(choices.Diminishing, power=wrong.SHARE, scale=wrong.NUMBER, correction=wrong.WHOLE, nonesuch=wrong.ANYTHING),
    choice(choices.Pooled, correction=wrong.WHOLE, nonesuch=wrong.ANYTHING),
    choice(choices.Window, size=wrong.WHOLE, total=wrong.FLAG, correction=wrong.WHOLE, nonesuch=wrong.ANYTHING),
    choice(choices.Ghost, size=wrong.WHOLE, update=wrong.WORD, nonesuch=wrong.ANYTHING),
    choice(choices.Sync, within=wrong.CHOICE, group=wrong.GROUP, timeout=wrong.NUMBER, nonesuch=wrong.ANYTHING),
    choice(choices.Masked, within=wrong.CHOICE, nonesuch=wrong.ANYTHING),
    choice(choices.Weighted, within=wrong.CHOICE, nonesuch=wrong.ANYTHING),
    choice(choices.Mixture, {"weight": lambda: 0.1}, weight=wrong.SHARE, per=wrong.WORD, nonesuch=wrong.ANYTHING),
    Verb("Mixture(prior)", choices.Mixture, {"prior": lambda: 16}, {"prior": wrong.NUMBER, "weight": wrong.SHARE}),
    choice(
        choices.Renorm,
        r_max=wrong.NUMBER,
        d_max=wrong.NUMBER,
        schedule={k: v for k, v in wrong.WORD.items() if k != "None"},
        nonesuch=wrong.ANYTHING,
    ),
    choice(
        choices.MABN,
        window=wrong.WHOLE,
        r_max=wrong.NUMBER,
        warmup=wrong.WHOLE,
        correct_after=wrong.WHOLE,
        nonesuch=wrong.ANYTHING,
    ),
    choice(choices.PowerNorm, backward_decay=wrong.SHARE, warmup=wrong.WHOLE, nonesuch=wrong.ANYTHING),
    choice(
        choices.UnifiedNorm,
        window=wrong.WHOLE,
        r_max=wrong.NUMBER,
        warmup=wrong.WHOLE,
        backward_decay=wrong.SHARE,
        filter_outliers=wrong.FLAG,
    ),
    choice(choices.OnlineNorm, backward_decay=wrong.SHARE, clamp=wrong.NUMBER, layer_scaling=wrong.FLAG),
    choice(choices.CrossIteration, window=wrong.WHOLE, burn_in=wrong.WHOLE, through_weights=wrong.FLAG),
    choice(choices.PopulationCoupling, gradient=wrong.FLAG),
    choice(choices.Policy, nonfinite=wrong.WORD, too_few=wrong.WORD, weights=wrong.WORD, nonesuch=wrong.ANYTHING),
    choice(
        choices.Recipe,
        extent=wrong.CHOICE,
        estimator=wrong.CHOICE,
        coupling=wrong.CHOICE,
        inference=wrong.CHOICE,
        policy=wrong.CHOICE,
    ),
    Verb(
        "Moments.of",
        choices.Moments.of,
        {"x": good.x},
        {
            "x": {
                k: v
                for k, v in wrong.IMAGES.items()
                if k not in ("float64", "wrong channels", "wrong rank", "one value per channel")
            },
            "channel_axis": wrong.WHOLE | {"too large": lambda: 9},
            "mask": wrong.MASK,
            "weight": wrong.WEIGHTS,
            "groups": wrong.WHOLE | {"more than samples": lambda: 9},
        },
        # Tensors without values have shapes.
        {"x: on the meta device", "channel_axis: a negative integer"},
    ),
    Verb(
        "Moments.var",
        lambda correction: choices.Moments.of(good.x()).var(correction),
        {"correction": lambda: 1},
        {"correction": wrong.NUMBER},
    ),
    Verb(
        "Moments.merge",
        lambda other: choices.Moments.of(good.x()).merge(other),
        {"other": lambda: choices.Moments.of(good.x())},
        {"other": wrong.ANYTHING | {"of other channels": lambda: choices.Moments.of(torch.ones(4, 5))}},
    ),
    # Kernels ---------------------------------------------------------------------------------------------------
    Verb("backends", kernels.backends, {}, {"nonesuch": wrong.ANYTHING}),
    Verb("kernels.use", kernels.use, {}, {"backend": {k: v for k, v in wrong.WORD.items() if k != "None"}}),
    Verb("keep_memory", kernels.keep_memory, {"on": lambda: False}, {"on": wrong.FLAG}),
    Verb(
        "verify",
        kernels.verify,
        {},
        {
            "device": wrong.DEVICE | {"meta": lambda: "meta"},
            "batch_norm": wrong.FUNCTION,
            "dtypes": {
                "a dtype": lambda: torch.float32,
                "words": lambda: ["float32"],
                "integers": lambda: [torch.int64],
                "a number": lambda: 3,
            },
        },
    ),
    # Other frameworks ------------------------------------------------------------------------------------------
    Verb(
        "average",
        interop.average,
        {"states": lambda: [good.network().state_dict()] * 2, "counts": lambda: [1, 2]},
        {
            "states": {
                "None": lambda: None,
                "one state": lambda: good.network().state_dict(),
                "models": lambda: [good.network()] * 2,
                "none": list,
                "words": lambda: ["a", "b"],
                "others": lambda: [good.network().state_dict(), {"x": good.x()}],
                "a number": lambda: 3,
            },
            "counts": {
                "None": lambda: None,
                "a number": lambda: 3,
                "words": lambda: ["1", "2"],
                "one": lambda: [1],
                "negative": lambda: [-1, 2],
                "NaN": lambda: [float("nan"), 1],
                "zeros": lambda: [0, 0],
                "tensors": lambda: [torch.ones(2), torch.ones(2)],
            },
            "batch_norm": wrong.WORD,
            "names": {
                "a list": lambda: ["mean"],
                "unknown entry": lambda: {"nonesuch": "mean"},
                "unknown rule": lambda: {"0.weight": "median"},
                "a word": lambda: "mean",
            },
        },
    ),
    Verb(
        "merge",
        interop.merge,
        {"client": lambda: good.network().state_dict(), "shared": lambda: {"0.bias": torch.ones(4)}},
        {"client": wrong.STATE, "shared": wrong.STATE | {"of other shape": lambda: {"0.bias": torch.ones(5)}}},
    ),
    Verb(
        "rules",
        interop.rules,
        {"state": lambda: good.network().state_dict()},
        {"state": wrong.STATE, "batch_norm": wrong.WORD},
    ),
    Verb(
        "state_from",
        interop.state_from,
        {"state": lambda: good.network().state_dict(), "library": lambda: "detectron2"},
        {
            "state": wrong.STATE,
            "library": wrong.WORD,
            "like": {k: v for k, v in wrong.STATE.items() if k != "None"},
            "eps": wrong.NUMBER,
        },
    ),
    Verb(
        "state_for",
        interop.state_for,
        {"state": lambda: good.network().state_dict(), "library": lambda: "detectron2"},
        {"state": wrong.STATE, "library": wrong.WORD, "eps": wrong.NUMBER},
    ),
    Verb(
        "rescale_variance",
        interop.rescale_variance,
        {"variance": lambda: np.ones(3), "count": lambda: 8, "have": lambda: "biased", "want": lambda: "unbiased"},
        {
            "variance": wrong.TENSOR_LIKE,
            "count": wrong.NUMBER,
            "have": wrong.WORD,
            "want": wrong.WORD,
            "weight_of_start": wrong.SHARE,
            "start": wrong.NUMBER,
        },
    ),
    Verb("torch_momentum", interop.torch_momentum, {"other": lambda: 0.99}, {"other": wrong.SHARE}),
    Verb(
        "variance_from",
        interop.variance_from,
        {"stored": lambda: np.ones(3), "form": lambda: "std_plus_eps", "eps": lambda: 1e-5},
        {"stored": wrong.TENSOR_LIKE, "form": wrong.WORD, "eps": wrong.NUMBER},
    ),
    Verb(
        "variance_from a second moment",
        interop.variance_from,
        {"stored": lambda: np.ones(3), "form": lambda: "second_moment", "mean": lambda: np.zeros(3)},
        {"mean": wrong.TENSOR_LIKE | {"None": lambda: None, "of other channels": lambda: np.ones(5)}},
    ),
    Verb(
        "to_sync",
        interop.to_sync,
        _HOLD,
        {"model": wrong.MODEL | {"of this package": good.ours}, "process_group": wrong.GROUP},
    ),
    Verb(
        "to_torch",
        interop.to_torch,
        {"model": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4)), "dims": lambda: 2},
        {
            "model": wrong.MODEL,
            "dims": {k: v for k, v in wrong.WHOLE.items()}
            | {"four": lambda: 4, "unknown path": lambda: {"nonesuch": 2}},
        },
    ),
    Verb(
        "translate",
        interop.translate,
        {"source": good.network, "target": lambda: "torch"},
        {
            "source": wrong.FILE | wrong.ANYTHING | {"a class": lambda: nn.BatchNorm2d, "an empty dict": dict},
            "target": wrong.ANYTHING
            | {k: v for k, v in wrong.NEW_FILE.items() if k not in ("a state dict", "a model")},
            "like": {k: v for k, v in wrong.ANYTHING.items() if k != "None"},
            "map": {
                "a word": lambda: "a",
                "a list": lambda: ["0"],
                "unknown": lambda: {"nonesuch": "0"},
                "numbers": lambda: {0: 1},
                "a number": lambda: 3,
            },
            "eps": wrong.SHARE,
            "momentum": wrong.SHARE,
            "count": wrong.NUMBER | {"of unknown": lambda: {"nonesuch": 8}},
            "steps": wrong.WHOLE,
            "partial": wrong.FLAG,
            "trust_numbers": wrong.FLAG,
            "repair": wrong.FLAG,
            "flatten": {
                "a word": lambda: "a",
                "unknown": lambda: {"nonesuch": (1, 2, 3)},
                "a list": lambda: [1],
                "a number": lambda: 3,
                "numbers": lambda: {"0": 3},
            },
            "key": {k: v for k, v in wrong.WORD.items() if k != "None"},
        },
        {"source: a state dict", "source: a model"},
    ),
    # Trainers --------------------------------------------------------------------------------------------------
    Verb(
        "averaged_model",
        averages.averaged_model,
        {"holder": lambda: AveragedModel(good.network())},
        {"holder": wrong.MODEL | {"a model": good.network}},
    ),
    Verb(
        "averages.recalibrate",
        averages.recalibrate,
        {"holder": lambda: AveragedModel(good.network()), "loader": good.batches},
        {"holder": wrong.MODEL, "loader": wrong.BATCHES, **RECALIBRATE_OPTIONS},
    ),
    Verb(
        "again",
        loaders.again,
        {"loader": good.batches},
        {
            "loader": {
                k: wrong.BATCHES[k]
                for k in ("None", "a number", "a path", "one tensor", "a dataset", "one dict", "the model", "a class")
            }
        },
    ),
    Verb(
        "Fields",
        lambda loader, x, **more: list(fields.Fields(loader, x=x, **more)),
        {"loader": lambda: [{"image": good.x()}], "x": lambda: "image"},
        {
            "loader": {
                k: v for k, v in wrong.BATCHES.items() if k not in ("dicts of other names", "a spent generator")
            },
            "x": wrong.WORD,
        },
        says={"x": "x|loader must give batches that hold"},
    ),
    Verb(
        "as_metric",
        lambda metric, **more: torchmetrics.as_metric(metric, **more)(
            torch.zeros(8, 2), (good.x(), torch.zeros(8, dtype=torch.long))
        ),
        {"metric": lambda: nn.functional.cross_entropy},
        {
            "metric": wrong.METRIC,
            "target": {"beyond": lambda: 5, "a key": lambda: "y", "a half": lambda: 0.5},
            "output": {"beyond": lambda: 50, "a key": lambda: "y", "a half": lambda: 0.5},
            "key": {"a number": lambda: 3},
        },
        {"metric: a loss module"},
        {"metric": "metric|key"},
    ),
    Verb(
        "accelerate.recalibrate",
        accelerate.recalibrate,
        {"accelerator": lambda: Accelerator(), "model": good.network, "loader": good.batches},
        {"accelerator": wrong.ANYTHING, "model": ON_DATA, "loader": wrong.BATCHES, **RECALIBRATE_OPTIONS},
    ),
    Verb(
        "schedule_free.recalibrate",
        schedule_free.recalibrate,
        {"model": good.network, "optimizer": lambda: Optimizer(), "loader": good.batches},
        {"model": ON_DATA, "optimizer": wrong.ANYTHING, "loader": wrong.BATCHES, **RECALIBRATE_OPTIONS},
    ),
    Verb(
        "schedule_free.evaluating",
        entered(schedule_free.evaluating),
        {"model": good.network, "optimizer": lambda: Optimizer(), "loader": good.batches},
        {"model": MODEL, "optimizer": wrong.ANYTHING, "loader": wrong.BATCHES, **RECALIBRATE_OPTIONS},
    ),
    Verb("timm.convert", with_timm.convert, _HOLD, {"model": MODEL, "method": wrong.WORD}),
    Verb("timm.to_stock", with_timm.to_stock, _OURS, {"model": wrong.MODEL}),
    Verb("ultralytics.Recalibrate", ultralytics.Recalibrate, {}, {"loader": AT_ONCE, **RECALIBRATE_OPTIONS}),
    *(
        Verb(
            f"{of.__name__.rpartition('.')[2]}.Recalibrate",
            of.Recalibrate,
            {},
            {
                "loader": AT_ONCE,
                "at": wrong.WORD | {"unknown": lambda: ["nonesuch"], "none": list, "numbers": lambda: [3]},
                "forward_fn": wrong.FUNCTION,
                **RECALIBRATE_OPTIONS,
            },
        )
        for of in (lightning, transformers)
    ),
    Verb(
        "lightning.Watch",
        lightning.Watch,
        {},
        {
            "to": {k: v for k, v in wrong.NEW_FILE.items() if k in wrong.PATH and k != "None"},
            "part": wrong.WORD,
            "every": wrong.WHOLE,
            "compare_processes": wrong.FLAG,
            "nonesuch": wrong.ANYTHING,
        },
        {"part: an unknown word", "part: an empty word"},
    ),
    Verb(
        "transformers.Watch",
        transformers.Watch,
        {},
        {"every": wrong.WHOLE, "compare_processes": wrong.FLAG, "nonesuch": wrong.ANYTHING},
    ),
    Verb(
        "lightning.Freeze",
        lightning.Freeze,
        {},
        {
            "parts": {k: v for k, v in wrong.NAMES.items() if "unknown" not in k},
            "affine": wrong.FLAG,
            "until_epoch": wrong.WHOLE,
            "nonesuch": wrong.ANYTHING,
        },
    ),
    Verb(
        "transformers.Freeze",
        transformers.Freeze,
        {},
        {
            "parts": {k: v for k, v in wrong.NAMES.items() if "unknown" not in k},
            "affine": wrong.FLAG,
            "until_step": wrong.WHOLE,
            "nonesuch": wrong.ANYTHING,
        },
    ),
    Verb(
        "register",
        kernels.register,
        {"passes": lambda: kernels.Passes(f"fresh{torch.rand(())}", lambda x: False, *[None] * 4)},
        {"passes": wrong.ANYTHING},
    ),
]
