"""Source code: what it does to running statistics, read and never run."""

import sys

from batchnorm.diagnosis.source import linting
from batchnorm.diagnosis.source.linting import lint

__all__ = ["lint"]

# Pickles of version 0.1.0 name these modules.
sys.modules["batchnorm.diagnosis.source.lint"] = linting
