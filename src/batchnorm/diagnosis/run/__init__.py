"""A training run: what the running statistics do, step by step."""

import sys

from batchnorm.diagnosis.run import watching
from batchnorm.diagnosis.run.watching import BatchNormWarning, Watch, watch

__all__ = ["BatchNormWarning", "Watch", "watch"]

# Pickles of version 0.1.0 name these modules.
sys.modules["batchnorm.diagnosis.run.watch"] = watching
