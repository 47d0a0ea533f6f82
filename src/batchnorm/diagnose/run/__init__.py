"""A training run: what the running statistics do, step by step."""

from batchnorm.diagnose.run.watch import BatchNormWarning as BatchNormWarning
from batchnorm.diagnose.run.watch import Watch as Watch
from batchnorm.diagnose.run.watch import watch as watch
