"""A live model: what its layers store, what they receive, and what the difference does."""

from batchnorm.diagnose.model.diagnose import diagnose as diagnose
from batchnorm.diagnose.model.evidence import Evidence as Evidence
from batchnorm.diagnose.model.evidence import LayerEvidence as LayerEvidence
