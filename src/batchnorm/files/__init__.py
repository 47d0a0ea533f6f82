"""Checkpoints: found and read as data only, written whole or not at all."""

from batchnorm.files.archive import Archive as Archive
from batchnorm.files.archive import changed as changed
from batchnorm.files.archive import load_archive as load_archive
from batchnorm.files.archive import load_state as load_state
from batchnorm.files.archive import save_archive as save_archive
from batchnorm.files.atomic import check_readable as check_readable
from batchnorm.files.atomic import check_writable as check_writable
from batchnorm.files.atomic import save_state as save_state
from batchnorm.files.atomic import write_atomically as write_atomically
from batchnorm.files.entry import Entry as Entry
from batchnorm.files.entry import mapped as mapped
from batchnorm.files.states import entries as entries
