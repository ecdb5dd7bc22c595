"""Memory as the kernel tells it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bench import memory
from bench.memory import Memory

_ROLLUP = """55d0-7ffe ---p 00000000 00:00 0                          [rollup]
Rss:               10240 kB
Pss:                4096 kB
Pss_Dirty:          1024 kB
Shared_Clean:       5120 kB
Private_Clean:      1024 kB
Private_Dirty:      2048 kB
"""


def test_private_memory_is_clean_and_dirty() -> None:
    assert memory.parse(_ROLLUP) == Memory(private=3.0, proportional=4.0)


def test_a_process_that_ended_holds_nothing() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert memory.of_process(ended.pid) == Memory()


def test_pages_taken_are_private_and_count_in_full() -> None:
    before = memory.of_process(os.getpid())
    taken = bytearray(b"x" * (64 << 20))
    after = memory.of_process(os.getpid())
    assert after.private - before.private == pytest.approx(len(taken) / (1 << 20), rel=0.2)
    assert after.proportional >= after.private
    assert set(memory.of_machine()) == set(memory.MACHINE)
