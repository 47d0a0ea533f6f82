"""The claims of all pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import mean, stdev
from typing import Any

from docs.figures.claim import Claim, Figure, read


def error(values: list[float]) -> float:
    """The standard error of a mean."""
    return stdev(values) / len(values) ** 0.5


def percent(value: float) -> float:
    """A share in percent."""
    return 100 * value


def _kernels() -> Iterator[Claim]:
    def of(key: str, form: str = ".2f", dtype: str = "") -> Figure:
        return Figure("kernels.json", (f"summary{dtype}", key), form)

    def kept(key: str, form: str = ".2f") -> Figure:
        return Figure("kernels-kept.json", ("summary", key), form)

    in_bfloat16 = " in bfloat16"
    keys = ("step, contiguous", "step, channels last and (N, C)", "BN + ReLU")
    rounded = [measure(key, ".1f") for measure in (of, kept) for key in keys]
    yield Claim(
        "README.md",
        "a training step of the layer is {} times as fast as torch's on contiguous tensors, {} times in "
        "`channels_last`, {} times with ReLU; {}, {} and {} where the allocator keeps memory",
        tuple(rounded),
    )
    yield Claim(
        "README.zh-CN.md",
        "在连续张量上是 torch 的 {} 倍快，在 `channels_last` 下 {} 倍，连同 ReLU {} 倍；"
        "分配器保留内存时分别为 {}、{} 和 {} 倍",
        tuple(rounded),
    )
    step = [
        Figure("network.json", ("EfficientNet-Lite0 step", layout, "fused, times stock"))
        for layout in ("channels_last", "contiguous")
    ]
    network = tuple(figure._replace(form=".1f") for figure in step)
    yield Claim("README.md", "EfficientNet-Lite0's whole step {} to {} times", network)
    yield Claim("README.zh-CN.md", "EfficientNet-Lite0 的整个训练步骤 {} 到 {} 倍", network)

    for name in ("relu6", "silu", "hardswish"):
        layouts = tuple(of(f"BN + {name}, {where}") for where in ("contiguous", "channels last and (N, C)"))
        yield Claim("docs/kernels.md", f"| BN + {name}, contiguous; channels last | {{}}; {{}} | | |", layouts)
    rows = {
        "training step, contiguous": "step, contiguous",
        "training step, channels last and `(N, C)`": "step, channels last and (N, C)",
        "worst single shape": "step, worst shape",
        "BN + ReLU": "BN + ReLU",
        "BN + add + ReLU": "BN + add + ReLU",
        "frozen": "frozen",
    }
    for name, key in rows.items():
        yield Claim(
            "docs/kernels.md", f"| {name} | {{}} | {{}} | {{}} |", (of(key), kept(key), of(key, dtype=in_bfloat16))
        )
    float32 = {
        "kernels alone, forward, contiguous": "kernels alone, forward",
        "kernels alone, backward, contiguous": "kernels alone, backward",
        "statistics alone": "statistics",
        "masked": "masked",
    }
    for name, key in float32.items():
        yield Claim("docs/kernels.md", f"| {name} | {{}} | {{}} | |", (of(key), kept(key)))
    three = ("renorm", "ghost", "sync of one")
    figures = [of(key) for key in three] + [kept(key) for key in three]
    figures += [of(key, dtype=in_bfloat16) for key in three]
    yield Claim(
        "docs/kernels.md", "| renorm, ghost, sync of one | {}, {}, {} | {}, {}, {} | {}, {}, {} |", tuple(figures)
    )
    for name in ("EfficientNet-Lite0", "MobileNetV3-Large", "EfficientNet-B0"):
        for layout in ("contiguous", "channels_last"):
            cells = [
                Figure(file, (f"{name} step", layout, f"{twin}, times stock"))
                for file in ("network.json", "network-kept.json")
                for twin in ("converted", "fused", "without")
            ]
            row = f"| {name} step, {layout} | {{}}, {{}}, {{}} | {{}}, {{}}, {{}} | |"
            yield Claim("docs/kernels.md", row, tuple(cells))
    name = "memory kept by BN + leaky_relu in place, of stock's (less is better)"
    yield Claim("docs/kernels.md", f"| {name} | {{}} |", (Figure("network.json", ("BN + leaky_relu", "over stock")),))
    yield Claim("docs/kernels.md", "(8, 32, 8, 8) and (256, 128), reach {}:", (of("step, worst shape"),))


def _recalibrate() -> Iterator[Claim]:
    page, upstream = "docs/recalibrate.md", "recalibrate/upstream.json"
    for layers in (3, 8, 20):
        for batch in ("1", "4", "16", "64", "64 sorted by class"):
            rows = [("rows", {"layers": layers, "batch": batch, "upstream": way}) for way in ("batch", "population")]
            figures = [
                Figure(upstream, (*rows[0], "worst residual"), ".3f"),
                Figure(upstream, (*rows[1], "worst residual"), ".0e"),
            ]
            figures += [
                Figure(upstream, (*row, key), form)
                for key, form in (("test error %", ".1f"), ("seconds", ".2f"))
                for row in rows
            ]
            yield Claim(page, f"| {layers} | {batch} | {' | '.join(['{}'] * 6)} |", tuple(figures))
    speed, ratio = "recalibrate/speed.json", "torch update_bn / this"
    names = {"torch update_bn": "torch update_bn", "`until=0.01`": "until=0.01", "`until=0.02`": "until=0.02"}
    names |= {"`recalibrate` on all": "all", '`upstream="batch"`': "batch"}
    for name, key in names.items():
        path = ("Fashion-MNIST", "to an error", key)
        forms = {"samples": "d", "seconds": ".2f", ratio: ".1f", "test error %": ".2f"}
        figures = tuple(Figure(speed, (*path, part), form) for part, form in forms.items())
        above = "error % |\n|---|---|---|---|---|\n" if key == "torch update_bn" else ""
        yield Claim(page, f"{above}| {name} | {{}} | {{}} | {{}} | {{}} |", figures)
    yield Claim(
        page, "three layers; before: {} % wrong", (Figure(speed, ("Fashion-MNIST", "before, test error %"), ".1f"),)
    )
    repair = "recalibrate/repair.json"
    for case in ("healthy", "EMA lag, 60 steps at momentum 0.01", "pruned", "merged", "3-bit", "SWA", "EMA of weights"):
        keys = ("error % before", "error % after", "error % after torch update_bn on 10240 samples")
        figures = [Figure(repair, ("rows", {"case": case}, key), ".1f", how) for key in keys for how in (mean, error)]
        yield Claim(page, f"| {case} | {{}} ± {{}} | {{}} ± {{}} | {{}} ± {{}} |", tuple(figures))

    def pair(case: str) -> tuple[Figure, ...]:
        return tuple(
            Figure(repair, ("rows", {"case": case}, f"error % {when}"), ".1f", mean) for when in ("before", "after")
        )

    yield Claim("docs/how-to/prune.md", "pruned, {} % wrong; recalibrated, {} %", pair("pruned"))
    averaged = (*pair("SWA"), *pair("EMA of weights"))
    yield Claim(
        "docs/how-to/average-weights.md", "SWA {} % wrong before and {} % after, EMA of weights {} % and {} %", averaged
    )
    yield Claim(
        "docs/how-to/merge.md",
        "two branches of one network had {} % wrong merged and {} % recalibrated",
        pair("merged"),
    )
    kills = [("`batch`", "batch"), ("`population`", "population")]
    for name, way in kills:
        keys = ("kills", "resumed to the end", "identical to the bit", "corrupt or left over files")
        figures = [Figure("recalibrate/kills.json", ("rows", {"upstream": way}, key), "d") for key in keys]
        yield Claim(page, f"| {name} | {{}} | {{}} | {{}} | {{}} |", tuple(figures))
    large = ("runs", {"batches": 2000})
    keys = (("read", "d"), ("forwards", ".3f"), ("MiB above the model", "d"), ("processor seconds", ".0f"))
    figures = tuple(Figure("recalibrate/large.json", (*large, key), form) for key, form in keys)
    words = "batches it read {} of them ({} forwards of the data, {} MiB above the model, {} processor seconds)"
    yield Claim(page, words, figures)

    def orders(key: str, form: str, how: Callable[[Any], float]) -> Figure:
        rows = ("against exact",)
        return Figure("recalibrate/large.json", rows, form, lambda all: how([row[key] for row in all if key in row]))

    words = (
        "for {} orders of them, the worst layer was {} to {} standard deviations off; no layer was further off than "
        "{} times the standard error that the result states for it, which was {} to {} in the worst layer. The plans "
        "of {} of them had said {} to {}"
    )
    ratio, before = "error over standard error, worst layer", "standard error said before"
    figures = (
        orders("order", "d", len),
        *(orders("error, worst layer", ".2f", how) for how in (min, max)),
        orders(ratio, ".2f", max),
        *(orders("standard error", ".2f", how) for how in (min, max)),
        orders(before, "d", len),
        orders(before, ".2f", lambda rows: min(low for low, _ in rows)),
        orders(before, ".2f", lambda rows: max(high for _, high in rows)),
    )
    yield Claim(page, words, figures)


def _diagnosis() -> Iterator[Claim]:
    keys = (("large.safetensors", "seconds (median of 5)", ".2f"), ("large.pt", "seconds (median of 5)", ".2f"))
    figures = [Figure("inspect/inspect_large.json", (name, key), form) for name, key, form in keys]
    figures += [Figure("inspect/inspect_large.json", ("large.safetensors", "MB beyond the imports"), ".0f")]
    yield Claim("docs/report.md", "take {} s as safetensors and {} s as a .pt file, and {} MB beyond", tuple(figures))
    narrow = ("results", "narrow")
    figures = [Figure("watch/watch_overhead.json", (*narrow, "added, microseconds a step and layer"), ".0f")]
    figures += [
        Figure("watch/watch_overhead.json", (*narrow, "ratio of medians"), ".0f", lambda ratio: 100 * (ratio - 1))
    ]
    yield Claim(
        "docs/report.md", "{} microseconds a layer and step to any: {} % of the step of a network of 49", tuple(figures)
    )
    keys = (("import torch", "milliseconds"), ("and a layer", "beyond torch"), ("and diagnose", "beyond torch"))
    figures = [Figure("imports/imports.json", key, ".0f") for key in keys]
    yield Claim(
        "docs/design.md",
        "own {} ms the import adds nothing that can be measured, a layer {} ms, `diagnose` {} ms",
        tuple(figures),
    )
    rows = {
        "broken: something above a note is said": "broken: above a note",
        "broken: the first finding names the cause": "broken: cause named first",
        "broken: the printed fix comes within 2 points of the best known repair": (
            "broken: fix within 2 points of the oracle"
        ),
    }
    for name, key in rows.items():
        yield _judged("judgement/independent.json", name, key)
        yield _judged("judgement/independent2.json", f"second half: {name}", key)
        yield _judged("judgement/independent3.json", f"third corpus: {name}", key)


def _judged(file: str, name: str, key: str) -> Claim:
    """A count, its share, and the interval of that."""
    path = ("figures", key)
    counts = [Figure(file, (*path, "cases"), "d", _part(i)) for i in (0, 1)]
    share = Figure(file, (*path, "cases"), ".0f", lambda text: 100 * int(text.split()[0]) / int(text.split()[2]))
    bounds = [Figure(file, (*path, "interval", i), ".0f", percent) for i in (0, 1)]
    return Claim("docs/report.md", f"| {name} | {{}} of {{}}, {{}} % ({{}} to {{}}) |", (*counts, share, *bounds))


def _part(index: int) -> Callable[[str], float]:
    return lambda text: int(text.split(" of ")[index])


def _others() -> Iterator[Claim]:
    trends = "methods/trends.json"
    small = [
        Figure(trends, ("experiments", "two_samples_a_step", {"method": name}, "mean"), ".1f")
        for name in ("mabn", "batchnorm")
    ]
    yield Claim("docs/how-to/detector.md", "on digits ({} % against {} % wrong", tuple(small))
    for name in (
        "EMA, gain 0.01",
        "debiased EMA, gain 0.01",
        "debiased EMA, gain 0.1",
        "cumulative",
        "pooled",
        "recalibrated",
    ):
        figures = [Figure(trends, ("experiments", "ema_lag", {"method": name}, key), ".1f") for key in ("mean", "se")]
        yield Claim("docs/methods-trends.md", f"| {name} | {{}} ± {{}} | ", tuple(figures))
    names = ("batchnorm", "renorm", "mabn", "cbn", "cbn, past moments constant")
    figures = [
        Figure(trends, ("experiments", "two_samples_a_step", {"method": name}, key), ".1f")
        for name in names
        for key in ("mean", "se")
    ]
    yield Claim("docs/methods-trends.md", "\n".join(f"| {name} | {{}} ± {{}} |" for name in names), tuple(figures))
    for batch, layout in ((1, "contiguous"), (8, "contiguous"), (8, "channels_last")):
        row = ("rows", {"batch": batch, "layout": layout})
        times = [
            Figure("fold/efficientnet.json", (*row, "milliseconds", key), ".1f")
            for key in ("before", "folded", "torch.fx fuse")
        ]
        times.insert(2, Figure("fold/efficientnet.json", (*row, "speedup")))
        name = f"{batch} x 128 px" + (", channels_last" if layout == "channels_last" else "")
        yield Claim("docs/fold.md", f"| {name} | {{}} | {{}} | {{}} | {{}} |", tuple(times))
    names = ("torch", "keras", "linen", "nnx", "equinox", "haiku")
    for source in names:
        figures = [Figure("interop/matrix.json", ("matrix", source, name, "after"), ".1e", float) for name in names]
        yield Claim("docs/interop.md", f"| {source} | {' | '.join(['{}'] * 6)} |\n", tuple(figures))
    losses = [
        Figure("interop/matrix.json", ("training", name, "largest_relative_difference"), ".1e")
        for name in ("keras", "linen")
    ]
    yield Claim("docs/interop.md", "on the same batches by at most {} and {}, relatively", tuple(losses))
    for name, kind in {"a rank raises": "raise", "killed with SIGKILL": "kill", "hangs": "hang"}.items():
        row = ("summary", {"kind": kind})
        keys = (
            ("runs", "d"),
            ("ok", "d"),
            ("median_seconds", ".0f"),
            ("most_seconds", ".0f"),
            ("from_undisturbed", ".0e"),
        )
        figures = [
            Figure("distributed/faults.json", (*row, key), form) for key, form in (*keys, ("from_one_process", ".0e"))
        ]
        yield Claim("docs/many-processes.md", f"| {name} | {{}} | {{}} | {{}} ({{}}) | {{}} | {{}} |", tuple(figures))
    for ranks in (1, 2, 4, 8):
        for channels in (64, 512, 2048):
            row = ("measured", {"ranks": ranks, "channels": channels}, "milliseconds_per_layer")
            keys = ("batchnorm", "its messages alone", "its work alone", "SyncBatchNorm's messages")
            keys += ("detectron2's messages", "nothing shared", "together")
            figures = [Figure("distributed/cost.json", (*row, key), "two digits") for key in keys]
            yield Claim(
                "docs/many-processes.md", f"| {ranks} | {channels} | {' | '.join(['{}'] * 7)} |", tuple(figures)
            )
    yield Claim(
        "docs/adapt.md",
        "{} times its time, and the worst of 49 layers is {} of its deviation from what it receives, {} before",
        (
            Figure("adapt/domain.json", ("ratio",)),
            Figure("adapt/domain.json", ("worst_layer", "adapt"), ".0e"),
            Figure("adapt/domain.json", ("worst_layer", "stored"), ".0e"),
        ),
    )
    for method in ("renorm", "power", "average", "renorm and average"):
        figures = [
            Figure("methods/own.json", ("rows", {"shape": shape, "method": method}, key))
            for shape in ([32, 64, 56, 56], [256, 128])
            for key in ("own", "itself")
        ]
        yield Claim("docs/how-to/own-method.md", f"| {method} | {{}} | {{}} | {{}} | {{}} |", tuple(figures))
    cost = read("methods/cost.json")["rows"]
    for method in (name for name in cost[0]["ratio_to_batchnorm"] if "inference" not in name):
        figures = [Figure("methods/cost.json", ("rows", i, "ratio_to_batchnorm", method)) for i in range(len(cost))]
        yield Claim("docs/methods/cost.md", f"| {method} | {' | '.join(['{}'] * len(cost))} |\n", tuple(figures))


def _adapt() -> Iterator[Claim]:
    groups = {
        "clean, shuffled or sorted": "clean",
        "corrupted, all classes": "balanced",
        "corrupted, few classes": "skewed",
        "corrupted, both": "corrupted",
        "corrupted, sorted": "sorted",
    }
    for size in ("all", "320", "1250", "5000"):
        for label, group in groups.items():
            place = ("summary", size, group)
            counts = [("runs", "d"), ("harms", "d"), ("harm_limit", ".1f")]
            figures = [Figure("adapt/held.json", (*place, key), form) for key, form in counts]
            names = ("stored", "early", "domain", "batch", "alpha", "auto")
            figures += [Figure("adapt/held.json", (*place, "errors", name), ".1f") for name in names]
            row = f"| {size}: {label} | {{}} | {{}} ({{}} %) | {' | '.join(['{}'] * 5)} | **{{}}** |"
            yield Claim("docs/adapt.md", row, tuple(figures))
    before = [Figure("adapt/streams-again.json", ("rows", "harm"), "d", how) for how in (sum, len)]
    yield Claim("docs/adapt.md", "The rule before this one harmed {} of {} runs", tuple(before))
    strong = [("now", "balanced", "auto"), ("before", "balanced", "auto"), ("now", "balanced", "stored")]
    strong += [("now", "balanced", "domain"), ("now", "skewed", "auto"), ("before", "skewed", "auto")]
    yield Claim(
        "docs/adapt.md",
        "(one network of three convolutions, `strong.json`) {} % are wrong on streams of all classes where it was {} % "
        "with that rule, {} % with the stored statistics and {} % with `domain`; on streams of few classes {} % where "
        "it was {} %",
        tuple(Figure("adapt/strong.json", (rule, group, "errors", name), ".1f") for rule, group, name in strong),
    )
    beyond = [Figure("adapt/held.json", ("summary", "all", g, "beyond_best")) for g in ("corrupted", "balanced")]
    yield Claim("docs/adapt.md", '"auto" is {} points from the best fixed choice', (beyond[0],))
    yield Claim("docs/adapt.md", 'ask for `domain`: "auto" is {} points worse', (beyond[1],))
    kept = [
        Figure("adapt/held.json", ("summary", "all", "balanced", *k), "d") for k in (("chosen", "stored"), ("runs",))
    ]
    yield Claim("docs/adapt.md", "It leaves the stored statistics in {} of {} such streams", tuple(kept))


def claims() -> list[Claim]:
    """All of them."""
    return [*_kernels(), *_recalibrate(), *_diagnosis(), *_adapt(), *_others()]
