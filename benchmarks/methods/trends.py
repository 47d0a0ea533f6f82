"""The trends of the literature on real data: what shows on digits in minutes, and what does not.

Every experiment returns rows of errors in percent, one a seed, with their mean and standard error.
`--quick` runs all of them at a size where the figures mean nothing.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from digits import BATCH, Data, data, error, error_with_batches, grouped, network, recalibrated, row, shuffled, train
from rich.progress import Progress
from torch import Tensor, nn

import batchnorm
from batchnorm.layers import EMA, MABN, CrossIteration, Cumulative, Ghost, Mixture, Pooled, Renorm, Window

Rows = list[dict[str, Any]]


class Size(NamedTuple):
    """How much is computed: seeds, training steps of each kind, batches for recalibration."""

    seeds: range = range(3)
    long: int = 800
    short: int = 400
    lag: int = 40
    tiny_batches: int = 1000
    recalibration: int = 16


# Batch Renormalization's average at torch's gain instead of its own 0.01.
FASTER = EMA(0.9, sigma=True, correction=0)
QUICK = Size(range(1), 10, 6, 40, 6, 8)


def one_class_groups(data: Data, size: Size, tick: Callable[[], None]) -> Rows:
    """Groups of 8 normalise on their own; their samples come from one class, or from two."""
    rows: Rows = []
    for classes in (1, 2):
        seeds = [_grouped_once(data, size, classes, seed, tick) for seed in size.seeds]
        for name in seeds[0]:
            rows.append(row(name, [errors[name] for errors in seeds], classes_in_a_group=classes))
    return rows


def _grouped_once(data: Data, size: Size, classes: int, seed: int, tick: Callable[[], None]) -> dict[str, float]:
    """The errors of one seed, by remedy."""

    def trained(method: str, freeze_after: int | None = None, **choices: Any) -> nn.Module:
        batches = grouped(data, size.long, seed, classes)
        model = network(method, seed, extent=Ghost(8), **choices)
        train(model, batches, size.long, freeze_after=freeze_after)
        tick()
        return model

    def test(model: nn.Module) -> float:
        return error(model, data.test_x, data.test_y)

    plain = trained("batchnorm")
    found = {"batchnorm": test(plain)}
    alike = grouped(data, size.recalibration, 1000 + seed, classes)
    found["batchnorm, recalibrated on such groups"] = test(recalibrated(copy.deepcopy(plain), alike))
    whole = batchnorm.convert(plain, extent=batchnorm.layers.Batch())
    mixed = shuffled(data, size.recalibration, 1000 + seed)
    found["batchnorm, recalibrated on shuffled batches"] = test(recalibrated(whole, mixed))
    found["renorm"] = test(trained("renorm"))
    found["renorm, gain 0.1"] = test(trained("renorm", estimator=FASTER))
    found["batchnorm, frozen for the last fifth"] = test(trained("batchnorm", size.long * 4 // 5))
    return found


def ema_lag(data: Data, size: Size, tick: Callable[[], None]) -> Rows:
    """40 steps at a constant rate: the same weights, and the statistics of each estimator."""
    estimators = {
        "EMA, gain 0.01": EMA(0.99),
        "EMA, gain 0.1": EMA(0.9),
        "debiased EMA, gain 0.01": EMA(0.99, debias=True),
        "debiased EMA, gain 0.1": EMA(0.9, debias=True),
        "cumulative": Cumulative(),
        "pooled": Pooled(),
        "window of 10": Window(10),
    }
    found: dict[str, list[float]] = {name: [] for name in (*estimators, "recalibrated")}
    for seed in size.seeds:
        model: nn.Module = nn.Identity()
        for name, estimator in estimators.items():
            batches = shuffled(data, size.lag, seed)
            model = train(network(seed=seed, estimator=estimator), batches, size.lag, cosine=False)
            found[name].append(error(model, data.test_x, data.test_y))
            tick()
        recalibrated(model, shuffled(data, size.recalibration, 1000 + seed))
        found["recalibrated"].append(error(model, data.test_x, data.test_y))
    return [row(name, errors) for name, errors in found.items()]


def batches_at_test_time(data: Data, size: Size, tick: Callable[[], None]) -> Rows:
    """Train and test with normalisation batches of n samples, at optimiser batches of 64 always."""
    rows: Rows = []
    for n in (2, 4, 8, 16, 64):
        found: dict[str, list[float]] = {
            "stored statistics": [],
            "recalibrated": [],
            "statistics of n test samples": [],
        }
        for seed in size.seeds:
            model = train(network(seed=seed, extent=Ghost(n)), shuffled(data, size.short, seed), size.short)
            tick()
            found["stored statistics"].append(error(model, data.test_x, data.test_y))
            found["statistics of n test samples"].append(error_with_batches(model, data.test_x, data.test_y, n))
            recalibrated(model, shuffled(data, size.recalibration, 1000 + seed))
            found["recalibrated"].append(error(model, data.test_x, data.test_y))
        rows += [row(name, errors, normalisation_batch=n) for name, errors in found.items()]
    return rows


def small_batch_ranking(data: Data, size: Size, tick: Callable[[], None]) -> Rows:
    """Normalisation batches of 2 in optimiser batches of 64; the warm-ups of the papers cut to these lengths."""
    pairs = Ghost(2)
    mabn = MABN(warmup=size.short // 10, correct_after=size.short // 4)
    contenders: dict[str, tuple[str, dict[str, Any]]] = {
        "batchnorm, 64": ("batchnorm", {}),
        "ghost, 8": ("batchnorm", {"extent": Ghost(8)}),
        "batchnorm, 2": ("batchnorm", {"extent": pairs}),
        "renorm, 2": ("renorm", {"extent": pairs}),
        "renorm, 2, gain 0.1": ("renorm", {"extent": pairs, "estimator": FASTER}),
        "mabn, 2": ("mabn", {"extent": pairs, "coupling": mabn}),
        "mabn, 2, gain 0.1": ("mabn", {"extent": pairs, "coupling": mabn, "estimator": EMA(0.9, correction=0)}),
        "population, 2": ("population", {"extent": pairs}),
        "online, 1": ("online", {}),
    }
    return _ranking(contenders, data, size.seeds, size.short, BATCH, 1e-2, tick)


def two_samples_a_step(data: Data, size: Size, tick: Callable[[], None]) -> Rows:
    """Optimiser batches of 2 as well: the noise of the gradient is in these figures too."""
    steps = size.tiny_batches
    contenders: dict[str, tuple[str, dict[str, Any]]] = {
        "batchnorm": ("batchnorm", {}),
        "renorm": ("renorm", {"coupling": Renorm()}),
        "mabn": ("mabn", {"coupling": MABN(warmup=steps // 10, correct_after=steps // 4)}),
        "cbn": ("cbn", {"coupling": CrossIteration(burn_in=steps // 10)}),
        "cbn, past moments constant": (
            "cbn",
            {"coupling": CrossIteration(burn_in=steps // 10, through_weights=False)},
        ),
        "population": ("population", {}),
        "online": ("online", {}),
    }
    return _ranking(contenders, data, size.seeds, steps, 2, 2e-3, tick)


def _ranking(
    contenders: dict[str, tuple[str, dict[str, Any]]],
    data: Data,
    seeds: range,
    steps: int,
    batch: int,
    rate: float,
    tick: Callable[[], None],
) -> Rows:
    rows: Rows = []
    for name, (method, choices) in contenders.items():
        errors: list[float] = []
        for seed in seeds:
            model = train(network(method, seed, **choices), shuffled(data, steps, seed, batch), steps, rate)
            errors.append(error(model, data.test_x, data.test_y))
            tick()
        rows.append(row(name, errors))
    return rows


def example_weighing(data: Data, size: Size, tick: Callable[[], None]) -> Rows:
    """Trained with normalisation batches of 2; inference mixes in each example's own moments.

    The weight is chosen on the validation digits; that every weight is listed shows what choosing on
    the test digits would have claimed.
    """
    weights = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
    found: dict[str, list[float]] = {f"weight {weight}": [] for weight in weights}
    found["weight chosen on validation data"] = []
    for seed in size.seeds:
        model = train(network(seed=seed, extent=Ghost(2)), shuffled(data, size.short, seed), size.short)
        tick()

        def with_weight(weight: float, x: Tensor, y: Tensor, model: nn.Module = model) -> float:
            return error(batchnorm.convert(model, extent=Ghost(2), inference=Mixture(weight=weight)), x, y)

        at_test = {weight: with_weight(weight, data.test_x, data.test_y) for weight in weights}
        held = {weight: with_weight(weight, data.validation_x, data.validation_y) for weight in weights}
        for weight in weights:
            found[f"weight {weight}"].append(at_test[weight])
        found["weight chosen on validation data"].append(at_test[min(weights, key=lambda weight: held[weight])])
    return [row(name, errors) for name, errors in found.items()]


# Each experiment with the number of networks it trains for a seed.
EXPERIMENTS: dict[str, tuple[Callable[[Data, Size, Callable[[], None]], Rows], int]] = {
    "one_class_groups": (one_class_groups, 8),
    "ema_lag": (ema_lag, 7),
    "batches_at_test_time": (batches_at_test_time, 5),
    "example_weighing": (example_weighing, 1),
    "small_batch_ranking": (small_batch_ranking, 9),
    "two_samples_a_step": (two_samples_a_step, 7),
}


def markdown(experiments: dict[str, Rows]) -> str:
    """The rows as tables."""
    lines: list[str] = []
    for name, rows in experiments.items():
        summary = (EXPERIMENTS[name][0].__doc__ or "").splitlines()[0]
        extra = [key for key in rows[0] if key not in ("method", "mean", "se", "errors")]
        heads = [key.replace("_", " ") for key in extra]
        lines += [f"## {name.replace('_', ' ')}", "", summary, ""]
        lines += ["| " + " | ".join(["method", *heads, "error, %"]) + " |", "|---|" + "---|" * len(heads) + "---:|"]
        for entry in rows:
            cells = [entry["method"], *(str(entry[key]) for key in extra), f"{entry['mean']:.1f} ± {entry['se']:.1f}"]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def kept_before(out: Path, quick: bool) -> dict[str, Rows]:
    """The experiments already in the file, unless they were of another size."""
    if not out.exists():
        return {}
    result = json.loads(out.read_text())
    return result["experiments"] if result["quick"] == quick else {}


def main(arguments: list[str] | None = None) -> None:
    """Run the experiments one after the other, keeping each as it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps of everything, to see that it runs")
    parser.add_argument("--seeds", type=int, help="in place of 3")
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--out", type=Path, help="beside the script; a quick run is only printed without it")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    size = QUICK if chosen.quick else Size()
    if chosen.seeds is not None:
        size = size._replace(seeds=range(chosen.seeds))
    out = chosen.out or (None if chosen.quick else Path(__file__).with_suffix(".json"))
    kept = kept_before(out, chosen.quick) if out else {}
    digits = data()
    with Progress() as progress:
        bar = progress.add_task("", total=len(size.seeds) * sum(EXPERIMENTS[name][1] for name in chosen.only))
        for name in chosen.only:
            progress.update(bar, description=name)
            kept[name] = EXPERIMENTS[name][0](digits, size, lambda: progress.advance(bar))
            kept = {key: kept[key] for key in EXPERIMENTS if key in kept}
            if out:
                result = {"torch": torch.__version__, "quick": chosen.quick, "experiments": kept}
                out.write_text(json.dumps(result, indent=1) + "\n")
                out.with_suffix(".md").write_text(markdown(kept))
    print(markdown({name: kept[name] for name in chosen.only}))


if __name__ == "__main__":
    main()
