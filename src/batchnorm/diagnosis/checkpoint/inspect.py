"""The verb: read one file or two, apply the rules, report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from batchnorm.arguments import a_path, a_string, arguments
from batchnorm.diagnosis.checkpoint.compare import COMPARISON_RULES, compare
from batchnorm.diagnosis.checkpoint.evidence import CheckpointEvidence, gather
from batchnorm.diagnosis.checkpoint.rules import CHECKPOINT_RULES
from batchnorm.diagnosis.checkpoint.subject import CheckpointSubject
from batchnorm.diagnosis.findings import Finding, apply_rules, by_severity
from batchnorm.diagnosis.report import Report
from batchnorm.errors import BatchNormError


@arguments(path=a_path, other=a_path, key=a_string)
def inspect_checkpoint(path: str | Path, other: str | Path | None = None, *, key: str | None = None) -> Report:
    """Say what is wrong with the batch norm layers in a checkpoint, from the file alone.

    Example:
        >>> import tempfile, torch, batchnorm
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(torch.nn.BatchNorm1d(3).state_dict(), f"{folder}/new.pt")
        ...     report = batchnorm.inspect_checkpoint(f"{folder}/new.pt")
        >>> report.ok, report.findings[0].code
        (False, 'BN201')

    Needs no model code and executes nothing in the file: of a pickle, only dicts, lists and the
    places of tensors are read, whatever else it names. The file is memory-mapped and of its tensors
    only those of batch norm are read, however large it is. Layers are recognised by their
    `running_mean`, `running_var` and `num_batches_tracked`, whatever they are called.

    Args:
        path: a `torch.save` archive (a state dict, a training checkpoint, a whole model), `.safetensors`, or
            `.onnx` (its BatchNormalization nodes; needs `batchnorm[interop]`).
        other: a second one: what moved from path to other, what did not, and what other lacks. What
            is wrong with either of them alone is said as well.
        key: the state dict that is meant, such as `ema` or `state_dict.model`. Without it all state
            dicts with batch norm are read, and layers are named with their keys where there are several.

    Returns:
        A report as from `diagnose`; `.layers[name].mean`, `.var`, `.weight`, `.bias`, `.counter`.

    Raises:
        BatchNormError: no such file or key, not a checkpoint, truncated or inconsistent; or no batch norm in it.
    """
    first = gather(path, sample_others=other is not None, key=key)
    if not first.layers:
        raise BatchNormError(
            f"path must hold a batch norm layer with running statistics; {first.path.name} has {first.tensors} "
            "tensors and none"
        )
    if other is None:
        return Report(CheckpointSubject(first), apply_rules(CHECKPOINT_RULES, first))
    comparison = compare(first, gather(other, sample_others=True, key=key, name="other"))
    found = apply_rules(COMPARISON_RULES, comparison) + _of_each(first, comparison.second)
    return Report(CheckpointSubject(first, comparison), by_severity(found))


def _of_each(first: CheckpointEvidence, second: CheckpointEvidence) -> list[Finding]:
    """What is wrong with either file alone, and in which of them."""
    before, after = (apply_rules(CHECKPOINT_RULES, e) for e in (first, second))
    shared = {(f.code, f.layer) for f in before} & {(f.code, f.layer) for f in after}
    found = []
    for e, findings in ((first, before), (second, after)):
        for f in findings:
            if (f.code, f.layer) not in shared:
                found.append(replace(f, message=f"in {e.path.name}: {f.message}"))
            elif e is second:
                found.append(replace(f, message=f"in both files: {f.message}"))
    return found
