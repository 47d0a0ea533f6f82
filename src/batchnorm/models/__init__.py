"""One model: modes, contexts, surgery and recalibration."""

import sys

from batchnorm.models import joint_forward
from batchnorm.models.activations import fuse_activations
from batchnorm.models.adapting.adapt import Adaptation, AdaptedLayer, adapt, unadapt
from batchnorm.models.adapting.decide import Choice
from batchnorm.models.affine import Centred, affine_penalty, center_weights, parameter_groups
from batchnorm.models.calls import separate_calls
from batchnorm.models.contexts import accumulate, bank, masked, mode
from batchnorm.models.find import batch_norm_layers
from batchnorm.models.folding.channels import ChannelAffine
from batchnorm.models.folding.fold import fold
from batchnorm.models.folding.result import FoldedLayer, Folding
from batchnorm.models.joint_forward import union
from batchnorm.models.modes import freeze, is_frozen, pause, unfreeze
from batchnorm.models.ranks import RankReport, rank_report, sync_statistics
from batchnorm.models.recalibration import recalibrating
from batchnorm.models.recalibration.recalibrating import Recalibration, recalibrate
from batchnorm.models.recalibration.update_bn import update_bn
from batchnorm.models.serving import backends
from batchnorm.models.surgery import convert, to_stock
from batchnorm.models.tracking import track

__all__ = [
    "Adaptation",
    "AdaptedLayer",
    "Centred",
    "ChannelAffine",
    "Choice",
    "FoldedLayer",
    "Folding",
    "RankReport",
    "Recalibration",
    "accumulate",
    "adapt",
    "affine_penalty",
    "backends",
    "bank",
    "batch_norm_layers",
    "center_weights",
    "convert",
    "fold",
    "freeze",
    "fuse_activations",
    "is_frozen",
    "masked",
    "mode",
    "parameter_groups",
    "pause",
    "rank_report",
    "recalibrate",
    "separate_calls",
    "sync_statistics",
    "to_stock",
    "track",
    "unadapt",
    "unfreeze",
    "union",
    "update_bn",
]

# Pickles of version 0.1.0 name these modules.
sys.modules["batchnorm.models.recalibrate"] = recalibrating
sys.modules["batchnorm.models.union"] = joint_forward
