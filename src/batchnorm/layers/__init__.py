"""One layer: moments, the five choices, the modules and the table of named methods."""

from batchnorm.layers.choices import Batch as Batch
from batchnorm.layers.choices import Policy as Policy
from batchnorm.layers.choices import Recipe as Recipe
from batchnorm.layers.choices import Stored as Stored
from batchnorm.layers.couplings import BatchCoupling as BatchCoupling
from batchnorm.layers.couplings import PopulationCoupling as PopulationCoupling
from batchnorm.layers.estimators import EMA as EMA
from batchnorm.layers.estimators import Cumulative as Cumulative
from batchnorm.layers.estimators import Pooled as Pooled
from batchnorm.layers.methods import METHODS as METHODS
from batchnorm.layers.methods import recipe_for as recipe_for
from batchnorm.layers.module import BatchNorm as BatchNorm
from batchnorm.layers.modules import BatchNorm1d as BatchNorm1d
from batchnorm.layers.modules import BatchNorm2d as BatchNorm2d
from batchnorm.layers.modules import BatchNorm3d as BatchNorm3d
from batchnorm.layers.modules import LazyBatchNorm1d as LazyBatchNorm1d
from batchnorm.layers.modules import LazyBatchNorm2d as LazyBatchNorm2d
from batchnorm.layers.modules import LazyBatchNorm3d as LazyBatchNorm3d
from batchnorm.layers.moments import Moments as Moments
