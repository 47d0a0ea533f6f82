"""Checkpoints: found and read as data only, written whole or not at all."""

from batchnorm.files.archive import Archive, changed, load_archive, load_state, save_archive
from batchnorm.files.atomic import check_readable, check_writable, save_state, write_atomically
from batchnorm.files.entry import Entry, mapped
from batchnorm.files.states import entries

__all__ = [
    "Archive",
    "Entry",
    "changed",
    "check_readable",
    "check_writable",
    "entries",
    "load_archive",
    "load_state",
    "mapped",
    "save_archive",
    "save_state",
    "write_atomically",
]
