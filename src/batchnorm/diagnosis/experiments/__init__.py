"""Questions answered on a copy: the same data under other statistics, with an error bar, and everything put back."""

from batchnorm.diagnosis.experiments.effect import Effect
from batchnorm.diagnosis.experiments.outcome import Outcome

__all__ = ["Effect", "Outcome"]
