"""Every rule of every side, by code."""

from __future__ import annotations

from batchnorm.diagnosis.checkpoint.compare import COMPARISON_RULES
from batchnorm.diagnosis.checkpoint.rules import CHECKPOINT_RULES
from batchnorm.diagnosis.findings import Rule
from batchnorm.diagnosis.rules import MODEL
from batchnorm.diagnosis.run.rules import RUN_RULES
from batchnorm.diagnosis.source.rules import SOURCE_RULES

RULES: tuple[Rule, ...] = tuple(
    sorted((*MODEL, *CHECKPOINT_RULES, *COMPARISON_RULES, *RUN_RULES, *SOURCE_RULES), key=lambda rule: rule.code)
)
