"""The allocator under torch's tensors: which one it is, and one line that tells glibc's to keep freed memory.

Torch takes a tensor's memory from `malloc`. glibc gives a large block back to the system when it is freed, so that the
next one's pages are faulted in anew, which costs more than the arithmetic on them.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from batchnorm.errors import BatchNormError, check

# malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER, _LARGEST, _DEFAULT = -1, 2**31 - 1, 128 * 1024
_KNOWN = ("tcmalloc", "jemalloc", "mimalloc")
_state = {"kept": False, "trims before fork": False}


class _Found(ctypes.Structure):
    """dlfcn.h, Dl_info."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _library() -> Any:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows
        return None


def _file_of_malloc() -> str | None:
    """The shared library whose malloc this process calls: a preloaded one comes first."""
    library, found = _library(), _Found()
    try:
        address = ctypes.cast(library.malloc, ctypes.c_void_p)
        library.dladdr.argtypes = (ctypes.c_void_p, ctypes.POINTER(_Found))
        known = library.dladdr(address, ctypes.byref(found))
    except AttributeError:
        return None
    return os.fsdecode(found.file) if known and found.file else None


def _glibc() -> str | None:
    """The version of glibc where its malloc is the one in use."""
    file = _file_of_malloc()
    if file is None or not os.path.basename(file).startswith("libc"):
        return None
    library = _library()
    try:
        version = library.gnu_get_libc_version
    except AttributeError:
        return None
    version.restype = ctypes.c_char_p
    return version().decode()


def allocator() -> str:
    """The allocator that torch's CPU tensors come from, for `batchnorm env`.

    Example:
        >>> from batchnorm.kernels.allocator import allocator
        >>> len(allocator()) > 0
        True
    """
    version = _glibc()
    if version is not None:
        return f"glibc {version}" + (", freed memory kept" if _state["kept"] else "")
    file = _file_of_malloc()
    if file is None:
        return "the system's"
    name = os.path.basename(file)
    return next((f"{known} ({name})" for known in _KNOWN if known in name), name)


def keep_memory(on: bool = True) -> str:
    """Tell glibc to keep freed memory in this process, for all of its tensors, instead of returning it to the system.

    Example:
        >>> from batchnorm import kernels
        >>> print(kernels.keep_memory())  # doctest: +SKIP
        glibc 2.36 keeps freed memory: blocks of up to 2 GiB come from its heap, which is trimmed before a fork alone

    Training steps that allocate large tensors run faster, whatever layers they use, and the process stays as large as
    it has been: `docs/allocators.md` has both in figures. Nothing calls this but you. With `on=False` unused memory
    goes back at once, and later on as by default; but the thresholds stay fixed at glibc's 128 KiB, where before the
    first call they followed the sizes that were freed: glibc has no way back to that.

    Returns:
        What was done, in one sentence.

    Raises:
        BatchNormError: another allocator than glibc's, or a setting that it refuses; nothing is changed.
    """
    check(isinstance(on, bool), "on", "True or False", repr(on))
    version = _glibc()
    if version is None:
        raise BatchNormError(
            f"keep_memory needs glibc's allocator; the one in use is {allocator()}, which has settings of its own"
        )
    _set(_MMAP_THRESHOLD, _LARGEST if on else _DEFAULT)
    _set(_TRIM_THRESHOLD, _NEVER if on else _DEFAULT)
    _state["kept"] = on
    if not on:
        _library().malloc_trim(ctypes.c_size_t(0))
        return (
            f"glibc {version} returns freed memory again, unused memory went back now; its thresholds stay at 128 KiB, "
            "where by default they follow the sizes freed"
        )
    if not _state["trims before fork"]:
        os.register_at_fork(before=_trim_if_kept)
        _state["trims before fork"] = True
    return (
        f"glibc {version} keeps freed memory: blocks of up to 2 GiB come from its heap, which is trimmed before a fork "
        "alone"
    )


def _set(parameter: int, value: int) -> None:
    if _library().mallopt(ctypes.c_int(parameter), ctypes.c_int(value)) != 1:
        raise BatchNormError(f"glibc refused mallopt({parameter}, {value}); its memory settings are as they were")


def _trim_if_kept() -> None:
    """What lies unused would be copied, page by page, once parent and child write to it."""
    if _state["kept"]:
        _library().malloc_trim(ctypes.c_size_t(0))
