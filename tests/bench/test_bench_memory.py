"""Memory as the kernel tells it."""

from __future__ import annotations

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
    """In a process of its own: in this one other tests' garbage may be collected meanwhile."""
    taker = [sys.executable, "-c", "print(); input(); taken = bytearray(b'x' * (64 << 20)); print(); input()"]
    with subprocess.Popen(taker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PYTHONUNBUFFERED": "1"}) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        before = memory.of_process(child.pid)
        child.stdin.write(b"\n")
        child.stdin.flush()
        child.stdout.readline()
        after = memory.of_process(child.pid)
        child.stdin.write(b"\n")
    assert after.private - before.private == pytest.approx(64, rel=0.2)
    assert after.proportional >= after.private
    assert set(memory.of_machine()) == set(memory.MACHINE)
