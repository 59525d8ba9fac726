"""What the C library does with freed memory; only glibc can be told."""

import ctypes
from contextlib import suppress

# Of malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Keep the memory that one step frees for the next one.

    By itself glibc gives large pieces back to the system, which clears every page before it hands them out
    again, at each training step on a CPU.
    """
    _set_thresholds(mmap=32 << 20, trim=2**31 - 1)  # no larger ones are allowed


def give_freed_memory_back() -> None:
    """Give large pieces back when they are freed.

    By itself glibc keeps what chance and earlier sizes make it, which was up to a fifth of a peak.
    """
    _set_thresholds(mmap=1 << 17, trim=1 << 17)  # as in the beginning, but never to rise


def _set_thresholds(mmap: int, trim: int) -> None:
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, mmap)
        mallopt(M_TRIM_THRESHOLD, trim)
