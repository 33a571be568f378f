"""How the C library hands out memory while models are trained on a processor."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of glibc's malloc.h
_MOST = 2**31 - 1
_MAPPED = 32 * 2**20
"""Bytes of the largest block that malloc may take from what was freed, by itself."""


def keep_freed_memory(*, largest: int) -> bool:
    """Let glibc keep the memory of freed tensors for the next ones; tell whether it does.

    By default every block of more than 32 MiB goes back to the kernel when it is freed, and the
    next one is mapped anew, page by page: a quarter of the time of an update of PPO on a model of
    135M parameters, whose embedding's gradient is such a block. Blocks that are kept lie in pieces,
    so that a process that trains small models would hold more for nothing; those are left alone,
    and so are other C libraries.

    Args:
        largest: bytes of the largest parameter of the models that are trained.
    """
    if largest <= _MAPPED or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _MOST))
