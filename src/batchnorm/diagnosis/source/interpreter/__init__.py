"""The abstract interpreter: `Program(project).run()` gives the events that the rules read."""

from batchnorm.diagnosis.source.interpreter.program import Program

__all__ = ["Program"]
