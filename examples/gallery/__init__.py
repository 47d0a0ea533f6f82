"""Broken models: small real training scripts in stock torch, what the diagnosis says, and its fix carried out."""

from gallery import averages, data, files, freezing, lag, runs
from gallery.common import CASES as CASES
from gallery.common import Case as Case
from gallery.common import Outcome as Outcome
from gallery.healthy import HEALTHY as HEALTHY

__all__ = ["CASES", "HEALTHY", "Case", "Outcome", "averages", "data", "files", "freezing", "lag", "runs"]
