"""Where memory is, in MiB: of a process, as the kernel accounts for it, and of the whole machine."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

# Of /proc/meminfo, what tells how a machine's memory is used: the first says what is left.
MACHINE = ("MemAvailable", "MemFree", "AnonPages", "Cached", "Shmem", "Slab", "KernelStack", "PageTables")
_LINE = re.compile(r"^(\w+): +(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True)
class Memory:
    """What one process or several hold, MiB."""

    # Of no other process: what is free again when it ends (USS).
    private: float = 0.0
    # That, and of each shared page its part: sums of it count every page once (PSS).
    proportional: float = 0.0


def of_process(pid: int) -> Memory:
    """Nothing of a process that has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return parse(Path(f"/proc/{pid}/smaps_rollup").read_text())
    return Memory()


def of_all(processes: Iterable[psutil.Process]) -> Memory:
    """The sum."""
    each = [of_process(process.pid) for process in processes]
    return Memory(sum(one.private for one in each), sum(one.proportional for one in each))


def parse(rollup: str) -> Memory:
    """Of the text of a /proc/PID/smaps_rollup."""
    sizes = _sizes(rollup)
    return Memory(sizes.get("Private_Clean", 0.0) + sizes.get("Private_Dirty", 0.0), sizes.get("Pss", 0.0))


def of_machine() -> dict[str, float]:
    """The MACHINE lines of /proc/meminfo."""
    sizes = _sizes(Path("/proc/meminfo").read_text())
    return {name: sizes[name] for name in MACHINE}


def _sizes(text: str) -> dict[str, float]:
    return {name: int(size) / 1024 for name, size in _LINE.findall(text)}
