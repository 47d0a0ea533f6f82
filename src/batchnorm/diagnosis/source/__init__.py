"""Source code: what it does to running statistics, read and never run."""

from batchnorm.diagnosis.source.lint import lint as lint
