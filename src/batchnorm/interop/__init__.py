"""Other people's formats and trainers."""

from batchnorm.interop.federate import average as average
from batchnorm.interop.federate import merge as merge
from batchnorm.interop.federate import rules as rules
from batchnorm.interop.states import state_for as state_for
from batchnorm.interop.states import state_from as state_from
from batchnorm.interop.statistics import rescale_variance as rescale_variance
from batchnorm.interop.statistics import torch_momentum as torch_momentum
from batchnorm.interop.statistics import variance_from as variance_from
from batchnorm.interop.stock import to_sync as to_sync
from batchnorm.interop.stock import to_torch as to_torch
from batchnorm.interop.translate import Translation as Translation
from batchnorm.interop.translate import translate as translate
