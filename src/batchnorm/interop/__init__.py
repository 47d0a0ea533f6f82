"""Other people's formats and trainers."""

import sys

from batchnorm.interop import translating
from batchnorm.interop.federate import average, merge, rules
from batchnorm.interop.states import state_for, state_from
from batchnorm.interop.statistics import rescale_variance, torch_momentum, variance_from
from batchnorm.interop.stock import to_sync, to_torch
from batchnorm.interop.translating import Translation, translate

__all__ = [
    "Translation",
    "average",
    "merge",
    "rescale_variance",
    "rules",
    "state_for",
    "state_from",
    "to_sync",
    "to_torch",
    "torch_momentum",
    "translate",
    "variance_from",
]

# Pickles of version 0.1.0 name these modules.
sys.modules["batchnorm.interop.translate"] = translating
