"""How the C library hands out memory, and takes it back, where models are trained."""

from __future__ import annotations

import ctypes
import gc
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of glibc's malloc.h
_MOST = 2**31 - 1
_MAPPED = 32 * 2**20
"""Bytes of the largest block that malloc may take from what was freed, by itself."""


def keep_freed_memory(*, largest: int) -> bool:
    """Let glibc keep the memory of freed tensors for the next ones; tell whether it does.

    `largest` is the bytes of the largest parameter of the models that are trained.
    """
    # By default every block of more than 32 MiB goes back to the kernel when it is freed, and the
    # next one is mapped anew, page by page: a quarter of the time of an update of PPO on a model of
    # 135M parameters, whose embedding's gradient is such a block. Blocks that are kept lie in
    # pieces: a process that trains small models would hold more for nothing, so that those are left
    # alone, and so are other C libraries.
    if largest <= _MAPPED or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _MOST))


def give_back_memory() -> bool:
    """Let glibc return to the kernel what is free between blocks in use; tell whether it did.

    By itself it returns large blocks, and what is free at the heap's end, so that each stage of a
    run would begin with what the ones before it have left in pieces.
    """
    if not sys.platform.startswith("linux"):
        return False
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return bool(trim and trim(0))
