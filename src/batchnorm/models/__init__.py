"""One model: modes, contexts, surgery and recalibration."""

from batchnorm.models.activations import fuse_activations as fuse_activations
from batchnorm.models.affine import Centred as Centred
from batchnorm.models.affine import affine_penalty as affine_penalty
from batchnorm.models.affine import center_weights as center_weights
from batchnorm.models.affine import parameter_groups as parameter_groups
from batchnorm.models.contexts import accumulate as accumulate
from batchnorm.models.contexts import bank as bank
from batchnorm.models.contexts import masked as masked
from batchnorm.models.contexts import mode as mode
from batchnorm.models.find import batch_norm_layers as batch_norm_layers
from batchnorm.models.folding.channels import ChannelAffine as ChannelAffine
from batchnorm.models.folding.fold import fold as fold
from batchnorm.models.folding.result import FoldedLayer as FoldedLayer
from batchnorm.models.folding.result import Folding as Folding
from batchnorm.models.modes import freeze as freeze
from batchnorm.models.modes import is_frozen as is_frozen
from batchnorm.models.modes import pause as pause
from batchnorm.models.modes import unfreeze as unfreeze
from batchnorm.models.recalibrate import Recalibration as Recalibration
from batchnorm.models.recalibrate import recalibrate as recalibrate
from batchnorm.models.surgery import convert as convert
from batchnorm.models.surgery import to_stock as to_stock
from batchnorm.models.union import union as union
