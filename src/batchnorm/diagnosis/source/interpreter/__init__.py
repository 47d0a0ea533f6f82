"""The abstract interpreter: `events(project)` are what the rules read."""

from batchnorm.diagnosis.source.interpreter.function import Interpreter
from batchnorm.diagnosis.source.interpreter.program import Program
from batchnorm.diagnosis.source.project import Project
from batchnorm.diagnosis.source.trace import Event


def events(project: Project) -> list[Event]:
    """All events of a program."""
    return Program(project, Interpreter).run()


__all__ = ["events"]
