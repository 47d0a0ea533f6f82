"""A live model: what its layers store, what they receive, and what the difference does."""

from batchnorm.diagnosis.model.diagnose import diagnose as diagnose
from batchnorm.diagnosis.model.evidence import Evidence as Evidence
from batchnorm.diagnosis.model.evidence import LayerEvidence as LayerEvidence
