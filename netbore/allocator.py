"""How the C library keeps memory. For the programs only: it concerns the whole process, which a library does not own.

A data path takes and frees buffers of up to 256 KiB, thousands of times a second. By default glibc maps each of them from the
kernel and gives it back, until it has learned better, and again when its heap shrinks. Fresh programs gained a fifth in bulk
from these two settings (mallopt(3)); idle ones keep at most the second.
"""

from __future__ import annotations

import ctypes
from typing import Final

#: Buffers below this come from the heap, bytes.
MMAP_THRESHOLD: Final = 4 * 1024 * 1024
#: So much of the heap's end stays when it is free, bytes.
TRIM_THRESHOLD: Final = 16 * 1024 * 1024

#: The names of these in malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def keep_buffers() -> bool:
    """Have freed buffers kept for the next ones. False, and nothing has changed, where the C library is not glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS; Windows takes no None
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD))
