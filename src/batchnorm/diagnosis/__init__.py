"""One model, read only: evidence (from a run, a checkpoint or source code), then rules, then a report."""

from batchnorm.diagnosis.catalogue import RULES as RULES
from batchnorm.diagnosis.checkpoint import inspect_checkpoint as inspect_checkpoint
from batchnorm.diagnosis.findings import Finding as Finding
from batchnorm.diagnosis.findings import Rule as Rule
from batchnorm.diagnosis.model import Evidence as Evidence
from batchnorm.diagnosis.model import LayerEvidence as LayerEvidence
from batchnorm.diagnosis.model import diagnose as diagnose
from batchnorm.diagnosis.report import Report as Report
from batchnorm.diagnosis.run import watch as watch
from batchnorm.diagnosis.source import lint as lint
