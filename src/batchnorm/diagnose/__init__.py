"""One model, read only: evidence, then rules, then a report."""

from batchnorm.diagnose.diagnose import diagnose as diagnose
from batchnorm.diagnose.evidence import Evidence as Evidence
from batchnorm.diagnose.evidence import LayerEvidence as LayerEvidence
from batchnorm.diagnose.findings import Finding as Finding
from batchnorm.diagnose.report import Report as Report
from batchnorm.diagnose.rules import RULES as RULES
