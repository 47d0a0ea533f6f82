"""Batch normalization whose running statistics can be trusted."""

from batchnorm.diagnose import diagnose as diagnose
from batchnorm.errors import BatchNormError as BatchNormError
from batchnorm.layers import EMA as EMA
from batchnorm.layers import BatchNorm as BatchNorm
from batchnorm.layers import BatchNorm1d as BatchNorm1d
from batchnorm.layers import BatchNorm2d as BatchNorm2d
from batchnorm.layers import BatchNorm3d as BatchNorm3d
from batchnorm.layers import Cumulative as Cumulative
from batchnorm.layers import Diminishing as Diminishing
from batchnorm.layers import Ghost as Ghost
from batchnorm.layers import LazyBatchNorm1d as LazyBatchNorm1d
from batchnorm.layers import LazyBatchNorm2d as LazyBatchNorm2d
from batchnorm.layers import LazyBatchNorm3d as LazyBatchNorm3d
from batchnorm.layers import Moments as Moments
from batchnorm.layers import Renorm as Renorm
from batchnorm.layers import Window as Window
from batchnorm.layers import methods as methods
from batchnorm.models import convert as convert
from batchnorm.models import freeze as freeze
from batchnorm.models import pause as pause
from batchnorm.models import recalibrate as recalibrate
from batchnorm.models import to_stock as to_stock
from batchnorm.models import unfreeze as unfreeze
