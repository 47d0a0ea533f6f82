"""What was measured on a live model: everything the rules rest on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from batchnorm.diagnosis.experiments.another_eps import AnotherEps
from batchnorm.diagnosis.experiments.changes import Change
from batchnorm.diagnosis.experiments.conditions import Statistics
from batchnorm.diagnosis.experiments.effect import Effect
from batchnorm.diagnosis.experiments.outcome import Outcome
from batchnorm.diagnosis.experiments.training_step import TrainingStep
from batchnorm.diagnosis.model.layer import LayerEvidence

RECALIBRATE = "batchnorm.recalibrate(model, loader)"


@dataclass
class Evidence:
    """The whole model: its layers, what each condition gave, and a training step rolled back.

    outcomes by condition: stored, batch, exact and rest on the loader; eval_stored, eval_exact and eval_own
    (recalibrated on them) on the evaluation data. statistics is what recalibrating does, by_batch what the
    batch's statistics do instead of exact ones, evaluation what recalibrating on the evaluation data
    does there, after what the loader's statistics repair. served is what running statistics do instead of what
    `model.eval()` leaves, by_domain what statistics of each kind's own do where the batches are of two kinds (domains
    says which is of the second), by_call what statistics of each call's own do where a layer has several calls. prior
    is what weighing the classes by their shares in the evaluation data does there, adding prior_offsets to the output;
    prior_explains the part of the lost accuracy that the shares explain.
    output_gap is the relative distance between the outputs with the batch's statistics and with
    the stored ones, everything else in eval; rest_gap the distance that everything but batch norm makes
    when it alone is in train mode.
    """

    layers: dict[str, LayerEvidence]
    samples: int = 0
    batches: int = 0
    offered: int | None = None
    partial: bool = False
    passes: float = 0.0
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    statistics: Effect = field(default_factory=lambda: Effect(RECALIBRATE, 0))
    by_batch: Effect = field(default_factory=lambda: Effect("the batch's statistics", 0))
    evaluation: Effect = field(default_factory=lambda: Effect("evaluation data", 0))
    eval_gap: Effect = field(default_factory=lambda: Effect("evaluation data", 0))
    eval_exact: Effect = field(default_factory=lambda: Effect(RECALIBRATE, 0))
    eval_undone: Effect | None = None
    prior: Effect | None = None
    prior_explains: float = 0.0
    prior_offsets: Tensor = field(default_factory=lambda: torch.zeros(0))
    eval_applied: Effect | None = None
    served: Effect | None = None
    by_call: Effect | None = None
    by_domain: Effect | None = None
    frozen: Effect | None = None
    domains: list[bool] = field(default_factory=list)
    another_eps: AnotherEps | None = None
    new_statistics: Effect | None = None
    as_batch_norm: Effect | None = None
    difference: Change = field(default_factory=Change)
    eval_shift: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)
    step: TrainingStep | None = None
    rest_gap: float | None = None
    rest_effect: Effect | None = None
    random_modules: list[str] = field(default_factory=list)
    without_statistics: list[str] = field(default_factory=list)
    left_in_eval: set[str] = field(default_factory=set)
    left_in_train: set[str] = field(default_factory=set)
    uses_batch: set[str] = field(default_factory=set)
    exact_refused: str = ""
    exact_options: str = ""
    attributed: int = 0
    padding: float = 0.0
    padding_varies: float = 0.0
    images: bool = False
    padding_effect: Effect | None = None
    labelled: bool = False
    sync_refused: bool = False
    feeds_tensors: bool = False
    exact: Statistics = field(default_factory=dict)
    knows: Callable[[str], float] = lambda condition: math.inf
    attempt: Callable[[str, Statistics], Effect | None] | None = None

    @property
    def recalibrate(self) -> str:
        """The call that was tried."""
        return RECALIBRATE[:-1] + self.exact_options + ")"

    @property
    def output_gap(self) -> float | None:
        """Between the outputs with the batch's and with the stored statistics."""
        return self.gap("batch", "stored")

    @property
    def recalibrated_gap(self) -> float | None:
        """Between the outputs with exact statistics and with the batch's."""
        return self.gap("exact", "batch")

    def repair(self, names: list[str]) -> Effect | None:
        """Right statistics in some layers alone."""
        right = {name: self.exact[name] for name in names if name in self.exact}
        return None if self.attempt is None else self.attempt("repaired", right)

    def gap(self, one: str, other: str) -> float | None:
        """The relative distance between the outputs under two conditions."""
        a, b = self.outcomes.get(one), self.outcomes.get(other)
        return None if a is None or b is None else a.distance(b)

    def metric(self, condition: str) -> float | None:
        """The metric under a condition; None where it was not measured."""
        found = self.outcomes.get(condition)
        return None if found is None else found.mean
