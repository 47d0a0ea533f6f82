"""The command line: `batchnorm demo`, `diagnose`, `env`, `inspect`, `lint`, `recalibrate` and `translate`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console

import batchnorm
from batchnorm import diagnose as diagnose_model
from batchnorm import recalibrate as recalibrate_model
from batchnorm.diagnosis import Report, inspect_checkpoint
from batchnorm.diagnosis import lint as lint_source
from batchnorm.diagnosis.report import finite
from batchnorm.errors import BatchNormError
from batchnorm.factories import batches, metric_of, model_of, running
from batchnorm.files import changed, check_writable, load_archive, save_archive, save_state
from batchnorm.models.recalibration.result import Upstream, summary
from batchnorm.models.recalibration.totals import Variance

FINE, FINDINGS, BAD_INPUT = 0, 1, 2
DOES_NOT_RUN = "--data must give batches that --model runs on, as a tensor, or first in a tuple; it failed"
app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Batch normalization whose running statistics can be trusted.\n\n"
    "Exit codes: 0 all is well, 1 something above a note was found, 2 bad input (nothing was written).",
)

ModelOption = Annotated[
    str, typer.Option("--model", help="MODULE:FACTORY; the factory takes no argument and returns the model.")
]
DataOption = Annotated[
    str, typer.Option("--data", help="MODULE:FACTORY; the factory takes no argument and returns the batches.")
]
WeightsOption = Annotated[
    Path | None, typer.Option("--weights", help="A .pt or .safetensors state dict, read as data only.")
]
KeyOption = Annotated[
    str | None,
    typer.Option("--key", help="Which state dict to use if the file holds several, such as ema or state_dict.model."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def _version(asked: bool) -> None:
    if asked:
        print(f"batchnorm {batchnorm.__version__}")
        raise typer.Exit(FINE)


@app.callback()
def options(
    asked: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of the program itself."""


@app.command()
def demo(
    report: Annotated[Path, typer.Option(help="Where to write the HTML report.")] = Path("batchnorm-demo.html"),
    lang: Annotated[str | None, typer.Option(help="Language, en or zh; by default the locale's.")] = None,
) -> None:
    """Show the four steps of batch norm, then diagnose and repair a network that fails in eval mode."""
    from batchnorm.demo.run import run
    from batchnorm.demo.words import words

    check_writable(report, "--report")
    raise typer.Exit(run(report, Console(), words(lang)))


@app.command("env")
def environment_report(as_json: JsonOption = False) -> None:
    """Print versions, processor, kernels and settings, for a bug report."""
    from batchnorm.environment import environment

    told = environment()
    if as_json:
        print(json.dumps(told))
        return
    for name, value in told.items():
        print(f"{name}: {value}")


HtmlOption = Annotated[Path | None, typer.Option("--html", help="Also write an HTML report here.")]


@app.command()
def diagnose(
    model: ModelOption,
    data: DataOption,
    weights: WeightsOption = None,
    key: KeyOption = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", help="MODULE:FUNCTION that takes output and batch and returns an accuracy or a loss."),
    ] = None,
    eval_data: Annotated[
        str | None, typer.Option("--eval-data", help="MODULE:FACTORY of evaluation batches, to compare with --data.")
    ] = None,
    as_json: JsonOption = False,
    html: HtmlOption = None,
) -> None:
    """Say what is wrong with a model's batch norm, in which layer, and what fixes it."""
    _check_html(html)
    net, loader = model_of(model, weights, key), batches(data)
    function = None if metric is None else metric_of(metric)
    others = None if eval_data is None else batches(eval_data, "--eval-data")
    with running(DOES_NOT_RUN):
        report = diagnose_model(net, loader, function, eval_loader=others)
    given = f"--model {model} --data {data}"
    given += "".join(f" --{name} {shlex.quote(str(v))}" for name, v in (("weights", weights), ("key", key)) if v)
    repairs = any("recalibrate" in finding.fix for finding in report.findings)
    last = f"\nThe same in a shell: batchnorm recalibrate {given} --out fixed.pt" if repairs else ""
    _show(report, as_json, html, last)


@app.command()
def inspect(
    checkpoint: Annotated[Path, typer.Argument(help="A .pt, .safetensors or .onnx file, read as data only.")],
    other: Annotated[
        Path | None, typer.Argument(help="A second checkpoint to compare: what changed, what did not, what is missing.")
    ] = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
    html: HtmlOption = None,
) -> None:
    """Say what is wrong with the batch norm in a checkpoint, from the file alone, without the model's code."""
    _check_html(html)
    _show(inspect_checkpoint(checkpoint, other, key=key), as_json, html)


@app.command()
def lint(
    paths: Annotated[list[Path], typer.Argument(help="Python files, or folders.")],
    select: Annotated[
        list[str] | None, typer.Option(help="Report only these codes; BN4 selects all that begin with BN4.")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="Do not report these codes; BN4 ignores all that begin with BN4.")
    ] = None,
    diff: Annotated[
        bool, typer.Option("--diff", help="Show what --fix would change, without changing anything.")
    ] = False,
    fix: Annotated[
        bool, typer.Option("--fix", help="Apply the fixes that are certain, and show them as a diff.")
    ] = False,
    as_json: JsonOption = False,
    html: HtmlOption = None,
) -> None:
    """Find misuse of running statistics in Python source; nothing is imported or run."""
    _check_html(html)
    given = [code for item in (select or []) for code in item.split(",")]
    left_out = [code for item in (ignore or []) for code in item.split(",")]
    report = lint_source(paths, select=given, ignore=left_out)
    if diff or fix:
        print(report.evidence.difference(), end="", file=sys.stderr if as_json else sys.stdout)
    if fix and report.evidence.fix():
        report = lint_source(paths, select=given, ignore=left_out)
    _show(report, as_json, html, incomplete=bool(report.evidence.failed))


def _check_html(html: Path | None) -> None:
    if html is not None:
        check_writable(html, "--html")


def _show(report: Report, as_json: bool, html: Path | None, last: str = "", incomplete: bool = False) -> None:
    if html is not None:
        report.to_html(html)
    if as_json:
        print(json.dumps(finite(report.to_dict()), indent=2))
    else:
        Console().print(report, crop=False)
        if last:
            Console().print(last, soft_wrap=True, highlight=False, markup=False)
    raise typer.Exit(BAD_INPUT if incomplete else FINE if report.ok else FINDINGS)


@app.command()
def recalibrate(
    model: ModelOption,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Where to write the repaired checkpoint (.pt or .safetensors).")],
    weights: WeightsOption = None,
    key: KeyOption = None,
    variance: Annotated[
        str, typer.Option(help="'total': of all values together; 'within': the mean of the batches' variances.")
    ] = "total",
    upstream: Annotated[
        str, typer.Option(help="What earlier layers normalise with: 'population' (as at inference) or 'batch'.")
    ] = "population",
    until: Annotated[
        float | None, typer.Option(help="Stop once every standard error is below this, in standard deviations.")
    ] = None,
    max_samples: Annotated[int | None, typer.Option(help="Stop after this many samples.")] = None,
    bank: Annotated[str | None, typer.Option(help="Measure the statistics of this bank only.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Save progress in this file, and continue from it if the run was interrupted.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Re-estimate the running statistics from data and write the repaired checkpoint; all else in it stays."""
    check_writable(out, "--out")
    if weights is not None and out.resolve() == weights.resolve() and load_archive(weights, key).lost:
        raise BatchNormError(
            f"--out must be another file than --weights where that holds objects, which are not loaded; it was {out}"
        )
    net, loader = model_of(model, weights, key), batches(data)
    with running(DOES_NOT_RUN):
        result = recalibrate_model(
            net,
            loader,
            variance=cast(Variance, variance),  # checked there
            upstream=cast(Upstream, upstream),
            until=until,
            max_samples=max_samples,
            bank=bank,
            resume=resume,
        )
    state, archive = net.state_dict(), None
    if weights is None:
        save_state(state, out)
    else:
        archive = load_archive(weights, key).fitted(state, weights.name)
        save_archive(archive.replaced(changed(state, archive.state)), out)
    lost = [] if archive is None else archive.left_out_of(out)
    if as_json:
        print(json.dumps(finite({**summary(result), "out": str(out), "left_out": lost}), indent=2))
    else:
        Console().print(result)
        if until is not None and not result.standard_error <= until:
            Console().print(f"The data ended before --until {until}: the worst error is {result.standard_error:.3g}.")
        made = "" if weights is not None else " (without --weights, so with the weights that the factory gave it)"
        if lost:
            made = f" (what {weights} holds beside tensors and plain data is not in it: {', '.join(lost[:6])})"
        Console().print(f"wrote {out}{made}", soft_wrap=True)


@app.command()
def translate(
    source: Annotated[Path, typer.Argument(help="A .pt, .safetensors, .keras, .h5, .msgpack, .npz or .onnx file.")],
    target: Annotated[Path, typer.Argument(help="The file to write; its suffix sets the format.")],
    key: KeyOption = None,
    like: Annotated[Path | None, typer.Option(help="A file of the target's architecture, as a template.")] = None,
    model: Annotated[
        str | None, typer.Option(help="MODULE:FACTORY of the target's architecture, instead of --like.")
    ] = None,
    map_file: Annotated[Path | None, typer.Option("--map", help="A JSON file {source layer: target layer}.")] = None,
    eps: Annotated[float | None, typer.Option(help="Epsilon of the source's layers, if the file lacks it.")] = None,
    momentum: Annotated[
        float | None, typer.Option(help="Momentum of the source's layers (torch's meaning), if the file lacks it.")
    ] = None,
    count: Annotated[
        float | None,
        typer.Option(help="Values per channel in a training batch (N*H*W), to convert biased to unbiased variance."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Number of training steps that the statistics have seen.")] = None,
    partial: Annotated[
        bool, typer.Option(help="Allow layers without a counterpart, and leave them as they are.")
    ] = False,
    trust_numbers: Annotated[bool, typer.Option(help="Pair layers by the numbers in their names.")] = False,
    flatten: Annotated[
        list[str] | None, typer.Option(help="NAME=C,H,W: the shape before the flatten in front of linear layer NAME.")
    ] = None,
    repair: Annotated[bool, typer.Option(help='Remove the excess in Equinox\'s variance (mode "batch").')] = False,
    as_json: JsonOption = False,
) -> None:
    """Convert weights and running statistics from one framework's file to another's."""
    from batchnorm.interop.command import run

    check_writable(target, "the target")
    template = like if model is None else model_of(model, None)
    said = {
        "key": key,
        "eps": eps,
        "momentum": momentum,
        "count": count,
        "steps": steps,
        "repair": repair,
        "flatten": flatten,
    }
    run(source, target, map_file, as_json, like=template, partial=partial, trust_numbers=trust_numbers, **said)


def main() -> None:
    """Run the command line; a `BatchNormError` becomes one sentence on stderr and exit code 2."""
    try:
        app()
    except BatchNormError as error:
        Console(stderr=True).print(f"batchnorm: {error}", style="red", markup=False, soft_wrap=True, highlight=False)
        sys.exit(BAD_INPUT)


if __name__ == "__main__":
    main()
