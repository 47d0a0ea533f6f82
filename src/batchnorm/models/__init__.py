"""One model: modes, surgery and recalibration."""

from batchnorm.models.find import batch_norm_layers as batch_norm_layers
from batchnorm.models.modes import freeze as freeze
from batchnorm.models.modes import is_frozen as is_frozen
from batchnorm.models.modes import pause as pause
from batchnorm.models.modes import unfreeze as unfreeze
from batchnorm.models.recalibrate import Recalibration as Recalibration
from batchnorm.models.recalibrate import recalibrate as recalibrate
from batchnorm.models.recalibration.update_bn import update_bn as update_bn
from batchnorm.models.surgery import convert as convert
from batchnorm.models.surgery import to_stock as to_stock
