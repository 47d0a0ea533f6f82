"""A live model: what its layers store, what they receive, and what the difference does."""

import sys

from batchnorm.diagnosis.model import diagnosing
from batchnorm.diagnosis.model.diagnosing import diagnose
from batchnorm.diagnosis.model.evidence import Evidence, LayerEvidence

__all__ = ["Evidence", "LayerEvidence", "diagnose"]

# Pickles of version 0.1.0 name these modules.
sys.modules["batchnorm.diagnosis.model.diagnose"] = diagnosing
