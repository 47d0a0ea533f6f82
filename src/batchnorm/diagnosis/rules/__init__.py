"""A rule is a file: its docstring is its page, its title and its fix stand once, and it brings its own test."""

from batchnorm.diagnosis.rules.read import MODEL

__all__ = ["MODEL"]
