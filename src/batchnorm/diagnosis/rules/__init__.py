"""A rule is a file: its docstring is its page, its title and its fix stand once, and it brings its own test."""

from batchnorm.diagnosis.rules.read import CHECKPOINT as CHECKPOINT
from batchnorm.diagnosis.rules.read import MODEL as MODEL
from batchnorm.diagnosis.rules.read import RUN as RUN
