"""Other people's formats and trainers."""

from batchnorm.interop.translate import Translation as Translation
from batchnorm.interop.translate import translate as translate
