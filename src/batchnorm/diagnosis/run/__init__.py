"""A training run: what the running statistics do, step by step."""

from batchnorm.diagnosis.run.watch import BatchNormWarning as BatchNormWarning
from batchnorm.diagnosis.run.watch import Watch as Watch
from batchnorm.diagnosis.run.watch import watch as watch
