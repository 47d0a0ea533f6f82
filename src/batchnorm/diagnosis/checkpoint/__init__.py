"""A checkpoint file alone: what its batch norm layers hold, read as data, without the model's code."""

from batchnorm.diagnosis.checkpoint.evidence import CheckpointEvidence as CheckpointEvidence
from batchnorm.diagnosis.checkpoint.evidence import StoredLayer as StoredLayer
from batchnorm.diagnosis.checkpoint.inspect import inspect_checkpoint as inspect_checkpoint
