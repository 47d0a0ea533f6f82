"""One model, read only: evidence (from a run, a checkpoint or source code), then rules, then a report."""

from batchnorm.diagnosis.catalogue import RULES
from batchnorm.diagnosis.checkpoint import inspect_checkpoint
from batchnorm.diagnosis.findings import Finding, Rule
from batchnorm.diagnosis.model.diagnosing import diagnose
from batchnorm.diagnosis.model.evidence import Evidence, LayerEvidence
from batchnorm.diagnosis.report import Report
from batchnorm.diagnosis.run.watching import BatchNormWarning, watch
from batchnorm.diagnosis.source import lint

__all__ = [
    "RULES",
    "BatchNormWarning",
    "Evidence",
    "Finding",
    "LayerEvidence",
    "Report",
    "Rule",
    "diagnose",
    "inspect_checkpoint",
    "lint",
    "watch",
]
