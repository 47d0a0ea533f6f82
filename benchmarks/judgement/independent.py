"""The half of the corpus written without sight of the diagnosis: its causes as codes, decided before it was run.

    PYTHONPATH=src:benchmarks:FOLDER python -m judgement.run --module judgement.independent --seeds 1 --json FILE

FOLDER holds the situations of one half; `independent.sha256`, and those with 2, 3 and 4, fix what was in them before
the first run.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

FOLDER = next(Path(folder) for folder in sys.path if (Path(folder) / "CAUSES.md").exists())
MODULES = sorted(path.stem for path in FOLDER.glob("situations_*.py"))
LATE = ["BN104", "BN108"]
# What the first finding may be for each of the author's causes. BN133 and BN134 were written after the first run.
CODES: dict[str, list[str]] = {
    "lag": LATE,
    "momentum_zero": ["BN107"],
    "momentum_convention": ["BN112"],
    "momentum_schedule": LATE,
    "stats_other_preprocessing": ["BN104"],
    "stats_other_data": ["BN104", "BN101"],
    "extra_forward_train_mode": ["BN104"],
    "second_domain": ["BN116", "BN104"],
    "discriminator_fakes": ["BN116", "BN104"],
    "buffers_not_written_back": ["BN101", "BN104"],
    "partial_checkpoint": ["BN101"],
    "swapped_buffers": ["BN104"],
    "misaligned_buffers": ["BN104"],
    "variance_convention": ["BN104"],
    "mean_convention": ["BN104"],
    "nan_batch": ["BN102", "BN103"],
    "constant_batch": ["BN104", "BN106"],
    "outlier_batch": ["BN104", "BN122"],
    "half_precision": ["BN105", "BN102", "BN104"],
    "eps_changed": ["BN134"],
    "many_small_errors": ["BN132", "BN104"],
    "several_causes": ["BN101", "BN102", "BN104", "BN107", "BN108"],
    "small_batches": ["BN114", "BN119"],
    "class_sorted": ["BN117", "BN119"],
    "averaged_weights": ["BN104"],
    "ema_without_buffers": ["BN104", "BN101"],
    "merged_weights": ["BN104"],
    "federated": ["BN104"],
    "pruned": ["BN104"],
    "quantised": ["BN104"],
    "padding": ["BN115", "BN104"],
    "dropout_variance_shift": ["BN120", "BN104"],
    "augmented_statistics": ["BN104"],
    "left_in_train_mode": ["BN113", "BN125", "BN133"],
    "no_running_statistics": ["BN125"],
    "shard_statistics": ["BN104"],
    "class_prior": ["BN131", "BN121"],
    "trained_with_stored_then_recalibrated": ["BN130"],
    "trained_with_stored_then_reset": ["BN130", "BN101", "BN104"],
    "frozen_weights_moving_statistics": ["BN109", "BN104"],
    "shared_layer": ["BN116", "BN110", "BN104"],
    # Those of the second half alone.
    "cumulative_average": LATE,
    "restored_weights": LATE,
    "folded_twice": ["BN104"],
    "quantised_buffers": ["BN104", "BN132"],
    "noised_buffers": ["BN104", "BN132"],
    "clipped_buffers": ["BN104"],
    "merged_buffers": LATE,
    "tracking_switched_off": ["BN113", "BN101", "BN104"],
    "low_rank": ["BN104"],
    "layers_removed": ["BN104"],
    "layer_replaced": ["BN104"],
    "weights_rescaled": ["BN104"],
    "slimmable_widths": ["BN116", "BN104"],
    "sequential_tasks": ["BN109", "BN104"],
    "wrong_branch": ["BN104"],
    "grouped_batches": ["BN117", "BN119", "BN121"],
    "time_ordered": LATE,
    # That of the third.
    "counter_reset": LATE,
    # Those of the fourth.
    "ema_buffers": LATE,
    "few_samples": LATE,
}
if FOLDER.name == "independent4":
    # Not the evaluation data's classes: statistics that were taken from the first files of a sorted folder.
    CODES["class_prior"] = ["BN104", "BN117"]


class Situation:
    """One of the author's, with codes in the place of the cause's name."""

    def __init__(self, theirs: Any) -> None:
        self.name, self.kind, self.make = theirs.name, theirs.kind, theirs.make
        key = theirs.code if isinstance(theirs.code, str) else None
        self.code = ["BN121"] if key and key.startswith("eval_") else CODES.get(key or "", [])


SITUATIONS = [Situation(one) for module in MODULES for one in import_module(module).SITUATIONS]
