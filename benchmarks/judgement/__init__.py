"""Situations with a known answer, and how often the diagnosis finds it."""
