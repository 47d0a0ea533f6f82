"""One layer: moments, the five choices, the modules and the table of named methods."""

import sys

from batchnorm.layers.activation import Activation
from batchnorm.layers.choices import Choices, Policy, Recipe
from batchnorm.layers.choices.averaging import MABN, PowerNorm, UnifiedNorm
from batchnorm.layers.choices.couplings import BatchCoupling, Coupling, PopulationCoupling, SecondMoment
from batchnorm.layers.choices.cross_iteration import CrossIteration
from batchnorm.layers.choices.estimators import EMA, Cumulative, Diminishing, Estimator, Pooled, Window
from batchnorm.layers.choices.extents import Batch, Ghost, Masked, Sync, Weighted
from batchnorm.layers.choices.inference import Mixture, Stored
from batchnorm.layers.choices.online import OnlineNorm
from batchnorm.layers.choices.renorm import Renorm
from batchnorm.layers.choices.situation import Now, State
from batchnorm.layers.choices.table import METHODS, Method, methods, recipe_for
from batchnorm.layers.module import BatchNorm
from batchnorm.layers.modules import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
)
from batchnorm.layers.moments import Moments
from batchnorm.layers.rule import UNCENTRED, Move, Numbers, Pull, Sums, Vectors
from batchnorm.layers.together import forward_together

__all__ = [
    "EMA",
    "MABN",
    "METHODS",
    "UNCENTRED",
    "Activation",
    "Batch",
    "BatchCoupling",
    "BatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Choices",
    "Coupling",
    "CrossIteration",
    "Cumulative",
    "Diminishing",
    "Estimator",
    "Ghost",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "Masked",
    "Method",
    "Mixture",
    "Moments",
    "Move",
    "Now",
    "Numbers",
    "OnlineNorm",
    "Policy",
    "Pooled",
    "PopulationCoupling",
    "PowerNorm",
    "Pull",
    "Recipe",
    "Renorm",
    "SecondMoment",
    "State",
    "Stored",
    "Sums",
    "Sync",
    "UnifiedNorm",
    "Vectors",
    "Weighted",
    "Window",
    "forward_together",
    "methods",
    "recipe_for",
]

# Pickles of earlier versions name these modules.
for _name in ("couplings", "cross_iteration", "estimators", "extents", "inference", "online", "renorm", "table"):
    sys.modules[f"batchnorm.layers.{_name}"] = sys.modules[f"batchnorm.layers.choices.{_name}"]
sys.modules["batchnorm.layers.moving"] = sys.modules["batchnorm.layers.choices.averaging"]
