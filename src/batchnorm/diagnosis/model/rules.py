"""The rules of a live model, causes before symptoms: evidence in, findings out."""

from __future__ import annotations

from batchnorm.diagnosis import rules
from batchnorm.diagnosis.findings import Rule
from batchnorm.diagnosis.model import rules_data as data
from batchnorm.diagnosis.model import rules_statistics as statistics
from batchnorm.diagnosis.model import rules_training as training

MODEL_RULES: tuple[Rule, ...] = (
    *rules.MODEL,
    Rule("BN129", "momentum outside [0, 1]", "error", training.momentum_outside),
    Rule("BN103", "variance negative", "error", statistics.negative),
    Rule("BN101", "statistics at their initial value", "error", statistics.initial),
    Rule("BN128", "one value per channel", "error", data.one_value),
    Rule("BN113", "tracking switched off after construction", "warning", training.not_tracking),
    Rule("BN107", "momentum 0 in train mode", "warning", training.momentum_zero),
    Rule("BN109", "frozen parameters, moving statistics", "warning", training.frozen_but_moving),
    Rule("BN111", "double counting", "warning", training.double_counting),
    Rule("BN105", "half-precision statistics", "warning", statistics.half),
    Rule("BN124", "SyncBatchNorm in a process group on a CPU", "warning", training.sync_on_cpu),
    Rule("BN125", "no running statistics", "warning", training.no_statistics),
    Rule("BN115", "padding counted as data", "warning", data.padding),
    Rule("BN116", "several distributions through one layer", "warning", data.several_distributions),
    Rule("BN119", "samples of a batch inform each other", "warning", data.leakage),
    Rule("BN121", "evaluation data differ from training data", "warning", data.data_differ),
    Rule("BN120", "statistics collected with dropout on", "warning", statistics.with_dropout),
    Rule("BN108", "too few steps for the momentum", "warning", training.too_few_steps),
    Rule("BN114", "too few values per channel", "warning", data.few_values),
    Rule("BN104", "statistics lag behind the data", "warning", statistics.lag),
    Rule("BN110", "uneven counters", "warning", training.uneven_counters),
    Rule("BN118", "the gap has another cause", "note", data.other_cause),
    Rule("BN117", "batches are not alike", "note", data.unlike_batches),
    Rule("BN106", "constant channels", "note", statistics.constant),
    Rule("BN122", "mean far from zero", "note", statistics.far_mean),
    Rule("BN123", "large gain", "note", statistics.large_gain),
    Rule("BN126", "channels switched off", "note", statistics.switched_off),
    Rule("BN127", "layer never reached", "note", training.unreached),
)
