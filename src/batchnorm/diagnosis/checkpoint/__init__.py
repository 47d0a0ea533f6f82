"""A checkpoint file alone: what its batch norm layers hold, read as data, without the model's code."""

from batchnorm.diagnosis.checkpoint.evidence import CheckpointEvidence, StoredLayer
from batchnorm.diagnosis.checkpoint.inspect import inspect_checkpoint

__all__ = ["CheckpointEvidence", "StoredLayer", "inspect_checkpoint"]
