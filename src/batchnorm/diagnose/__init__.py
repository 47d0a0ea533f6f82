"""One model, read only: evidence (from a run, a checkpoint or source code), then rules, then a report."""

from batchnorm.diagnose.checkpoint import inspect_checkpoint as inspect_checkpoint
from batchnorm.diagnose.findings import Finding as Finding
from batchnorm.diagnose.findings import Rule as Rule
from batchnorm.diagnose.model import Evidence as Evidence
from batchnorm.diagnose.model import LayerEvidence as LayerEvidence
from batchnorm.diagnose.model import diagnose as diagnose
from batchnorm.diagnose.report import Report as Report
from batchnorm.diagnose.rules import RULES as RULES
from batchnorm.diagnose.run import watch as watch
from batchnorm.diagnose.source import lint as lint
