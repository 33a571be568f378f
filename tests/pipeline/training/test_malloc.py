from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from pipeline.training.malloc import keep_freed_memory

on_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the C library is not glibc"
)
CHURN = """
import resource, sys
from pipeline.training.malloc import keep_freed_memory

kept = sys.argv[1] == "keep" and keep_freed_memory(largest=48_000_000)
def churn():
    for _ in range(20):
        bytearray(48_000_000)  # no small object, so malloc's as a tensor is
churn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
churn()
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


PIECES = """
import os
from pathlib import Path
from pipeline.training.malloc import give_back_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
held = [bytearray(100_000) for _ in range(4000)]
last = bytearray(100_000)  # above them all
full = resident()
held = None
freed = resident()
print(int(give_back_memory()), full - freed, full - resident())
"""


@on_glibc
def test_freed_memory_is_used_again_without_new_pages() -> None:
    def faults(how: str) -> tuple[int, int]:
        command = [sys.executable, "-c", CHURN, how]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        kept, count = map(int, told.split())
        return kept, count

    kept, count = faults("keep")
    assert kept == 1
    # 48 MB are 12,000 pages of 4 KiB; large pages make them fewer.
    assert count < max(200, faults("give back")[1] / 4)


def test_small_models_are_left_alone() -> None:
    assert not keep_freed_memory(largest=32 * 2**20)


@on_glibc
def test_memory_that_is_free_between_blocks_goes_back() -> None:
    command = [sys.executable, "-c", PIECES]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    done, by_itself, with_it = map(int, told.split())
    assert done == 1
    assert with_it > 300e6 > by_itself
