"""The rules of a run. Each fires at the step it happens, once a layer."""

from __future__ import annotations

from batchnorm.diagnosis.findings import Rule, Said, of_each
from batchnorm.diagnosis.rules import bn112_keras_momentum
from batchnorm.diagnosis.run.evidence import LayerRun, RunEvidence

RANKS = 0.1  # running standard deviations
REMAINS = 0.01
STEPS = 5  # optimizer steps in eval before they are said
STILL = 10  # optimizer steps in which nothing trained a layer whose statistics moved
DEBIASED = ', or batchnorm.convert(model, "debiased") at the start'


def recounted(e: RunEvidence) -> Said:
    """More updates than forwards: the recomputed forward of checkpointing counts again."""
    for layer in e.layers.values():
        compiled = layer.calls == 0 and e.forwards > 0 and layer.updates >= 2 * e.forwards
        if (layer.recomputed and layer.updates >= layer.calls + layer.recomputed) or compiled:
            yield (
                layer.name,
                f"{layer.updates} updates in {layer.calls or e.forwards} forwards: activation checkpointing runs the "
                "forward again in the backward pass, and it counts twice",
                "batchnorm.convert(model)",
            )


def frozen_moves(e: RunEvidence) -> Said:
    """A layer whose parameters are frozen, or in no optimizer and unchanged, and whose statistics move."""
    for layer in e.layers.values():
        if not layer.updates:
            continue
        if layer.frozen or layer.trains_affine is False:
            why = "weight and bias do not require gradients"
        elif layer.still and layer.batch_steps >= STILL:
            why = f"the optimizer does not hold it, nor its neighbours, and nothing has trained it in {e.steps} steps"
        else:
            continue
        evals = [step for step, mode in layer.modes if mode == "eval"]
        undone = [step for step, mode in layer.modes if mode == "train" and evals and step > evals[0]]
        since = f"; it was in eval until .train() undid that before step {undone[0]}" if undone else ""
        yield (
            layer.name,
            f"{why}, but the running statistics move in train mode{since}",
            "batchnorm.freeze(model), which survives train(), and the statistics from before",
        )


def without_gradients(layer: LayerRun) -> Said:
    """A forward in train mode under no_grad."""
    if layer.silent_calls:
        rest = ", in a part that was in eval otherwise" if layer.silent_in_eval else ""
        yield (
            f"a forward in train mode under no_grad moved the running statistics{rest}: an evaluation, a summary "
            "or a teacher without eval()",
            "model.eval() before it, or with batchnorm.pause(model): ...",
        )


def stays_in_eval(e: RunEvidence) -> Said:
    """Steps with all of the called part in eval, up to the last: train() was never called, or never again."""
    for layer in e.layers.values():
        count = layer.whole_eval_steps
        if count < STEPS or not layer.learns or layer.frozen:
            continue
        before = f"it trained in train mode until step {e.steps - count}, then" if layer.batch_steps else "so far"
        yield (
            layer.name,
            f"{before} {count} optimizer steps were taken with the model in eval: an evaluation that did not go back, "
            "or train() forgotten; batch norm used its stored statistics and dropout was off",
            "model.train() after each evaluation; if it is meant, batchnorm.freeze(model) and model.train(). "
            "Do not recalibrate: the weights fit the stored statistics",
        )


def trained_with_stored(layer: LayerRun) -> Said:
    """Steps with batch norm in eval and the rest in train mode, or a spell in eval that is over."""
    seen = layer.learns and not layer.frozen and layer.stored_steps >= STEPS
    if not seen or layer.whole_eval_steps >= STEPS:
        return
    yield (
        f"{layer.stored_steps} of {layer.stored_steps + layer.batch_steps} optimizer steps trained the weights "
        "with this layer in eval: they fit the stored statistics",
        "keep the statistics, do not recalibrate; batchnorm.freeze(model) holds them through train()",
    )


def several_a_step(e: RunEvidence) -> Said:
    """Several forwards in train mode in one optimizer step."""
    if e.forwards_a_step is not None and e.forwards_a_step >= 1.9:
        yield (
            "",
            f"{e.forwards_a_step:.1f} forwards in train mode an optimizer step, and each moves the running "
            "statistics: SAM, adversarial and consistency passes see other activations; in gradient accumulation "
            "micro-batches count as batches",
            "with batchnorm.pause(model): ... around every forward but the first",
        )


def ranks_differ(layer: LayerRun) -> Said:
    """Processes whose statistics, or whose batches, are apart."""
    if layer.rank_drift > RANKS:
        yield (
            f"the processes' running means are up to {layer.rank_drift:.2f} standard deviations apart: what is "
            "saved and evaluated depends on the rank",
            "average the statistics over the ranks before evaluating and saving, or recalibrate",
        )
    elif layer.ranks_apart:
        yield (
            f"the processes' batches lie {layer.rank_shift:.2f} standard deviations (+- "
            f"{layer.rank_shift_error:.2f}) apart: each sees other data, and where buffers are broadcast the "
            "statistics are those of rank 0's part",
            "shuffle before the data is divided among the ranks, or nn.SyncBatchNorm.convert_sync_batchnorm(model)",
        )


def poisoned(e: RunEvidence) -> Said:
    """NaN or infinity has entered; the first layer in the order of the model."""
    for layer in e.layers.values():
        if not layer.finite:
            yield (
                layer.name,
                "the running statistics became NaN or infinite: an average never forgets it, and train mode does not "
                "show it",
                "batchnorm.recalibrate(model, loader); batchnorm.convert(model) skips such batches from now on",
            )
            return


def momentum_zero(layer: LayerRun) -> Said:
    """Momentum 0 in train mode."""
    if layer.momentum == 0 and not layer.frozen and layer.calls:
        yield (
            "momentum is 0 in train mode: the layer normalises with the batch and moves nothing, so the network "
            "is not trained with the statistics that inference uses",
            "batchnorm.freeze(model)",
        )


def untracked(layer: LayerRun) -> Said:
    """Tracking switched off on a layer with buffers."""
    if layer.untracked:
        yield (
            "track_running_stats is False on a layer that has buffers: training does not move them, eval mode "
            "uses the old ones",
            "layer.track_running_stats = True; batchnorm.freeze(model) to freeze",
        )


def too_few_steps(e: RunEvidence) -> Said:
    """Initial value left at the end: as soon as the length is known, else when the run is over."""
    steps = e.planned if e.planned is not None else e.steps if e.closed else None
    for layer in e.layers.values():
        m = layer.momentum
        fair = layer.fades and layer.started_initial and not layer.frozen and layer.calls > 0
        if steps and fair and m is not None and 0 < m < 1:
            a_step = layer.calls / max(e.steps, 1) if e.steps else 1.0
            left = (1 - m) ** (steps * max(a_step, 1.0))
            if left > REMAINS:
                yield (
                    layer.name,
                    f"{steps} steps at momentum {m:g} leave {left:.0%} of the initial value in the running statistics",
                    "batchnorm.recalibrate(model, loader) at the end" + (DEBIASED if layer.plain else ""),
                )


def drifting(e: RunEvidence) -> Said:
    """The batches are, on average over many looks, not where the running mean is, at an evaluation or at the end."""
    for layer in e.layers.values():
        if e.closed and layer.lagging:
            when, drift, error = "at the end", layer.drift, layer.standard_error
        elif layer.lags:
            worst = max(layer.lags, key=lambda lag: lag.drift)
            count = "" if e.evaluations == 1 else f", one of {len(layer.lags)} of {e.evaluations} evaluations"
            when, drift, error = f"at the evaluation after step {worst.step}{count},", worst.drift, worst.standard_error
        else:
            continue
        yield (
            layer.name,
            f"{when} the batches' means lie {drift:.2f} standard deviations (+- {error:.2f}) from the running mean: "
            "the weights move faster than the average",
            "batchnorm.recalibrate(model, loader) before evaluating, or a larger momentum",
        )


def keras_momentum(e: RunEvidence) -> Said:
    """A momentum that looks like the weight of the old value."""
    for layer, message, values in bn112_keras_momentum.look(e):
        yield layer, message, f"layer.momentum = {values['right']:g}"


def skipped(layer: LayerRun) -> Said:
    """Batches that were left out."""
    if layer.skipped:
        yield (
            f"{layer.skipped} batches with NaN or infinity were left out of the running statistics",
            "look for what makes them: a loss scale, a learning rate, a broken sample",
        )


RUN_RULES: tuple[Rule, ...] = (
    Rule("BN305", "statistics poisoned in the run", "error", poisoned),
    Rule("BN306", "momentum 0 in the run", "warning", of_each(momentum_zero)),
    Rule("BN307", "momentum of another framework in the run", "warning", keras_momentum),
    Rule("BN312", "tracking switched off in the run", "warning", of_each(untracked)),
    Rule("BN301", "counting twice a step", "warning", recounted),
    Rule("BN302", "frozen and moving", "warning", frozen_moves),
    Rule("BN303", "moving under no_grad", "warning", of_each(without_gradients)),
    Rule("BN314", "optimizer steps in eval", "warning", stays_in_eval),
    Rule("BN311", "several updates a step", "warning", several_a_step),
    Rule("BN304", "ranks differ", "warning", of_each(ranks_differ)),
    Rule("BN308", "too few steps for the momentum in the run", "warning", too_few_steps),
    Rule("BN310", "statistics lag in the run", "warning", drifting),
    Rule("BN313", "trained with the stored statistics in the run", "note", of_each(trained_with_stored)),
    Rule("BN309", "skipped batches", "note", of_each(skipped)),
)
