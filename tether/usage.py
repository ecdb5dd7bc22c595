"""What the container uses: resource figures and the list of its processes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tether.cgroup import Group
from tether.v1 import tether_pb2

if TYPE_CHECKING:
    import psutil

_MAX_PROCESSES = 1000
# Of one process's command line, and of all together: the list is one message.
_MAX_ARGUMENTS = 4096
_MAX_ALL_ARGUMENTS = 64 * 1024
_MAX_NAME = 32
_PTS_MAJOR = 136


def stats(group: Group) -> tether_pb2.StatsResponse:
    """One sample."""
    cpu = group.keyed("cpu.stat")
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return tether_pb2.StatsResponse(
        time_unix_ns=time.time_ns(),
        cpu_total_ns=cpu.get("usage_usec", 0) * 1000,
        cpu_user_ns=cpu.get("user_usec", 0) * 1000,
        cpu_system_ns=cpu.get("system_usec", 0) * 1000,
        system_cpu_ns=sum(ticks) * tick_ns,
        online_cpus=os.cpu_count() or 1,
        throttled_periods=cpu.get("nr_throttled", 0),
        throttled_ns=cpu.get("throttled_usec", 0) * 1000,
        memory_usage_bytes=group.number("memory.current"),
        memory_limit_bytes=group.number("memory.max"),
        memory_stat=group.keyed("memory.stat"),
        pids=group.number("pids.current"),
        pids_limit=group.number("pids.max"),
        block=_block(group),
        vm_memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    )


def _block(group: Group) -> list[tether_pb2.BlockStats]:
    """Traffic by device, from io.stat: "8:0 rbytes=1 wbytes=2 rios=3 wios=4 ..."."""
    found = []
    for line in group.text("io.stat").splitlines():
        device, *pairs = line.split()
        values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        major, _, minor = device.partition(":")
        found.append(
            tether_pb2.BlockStats(
                major=int(major),
                minor=int(minor),
                read_bytes=int(values.get("rbytes", 0)),
                write_bytes=int(values.get("wbytes", 0)),
                read_operations=int(values.get("rios", 0)),
                write_operations=int(values.get("wios", 0)),
            )
        )
    return found


def processes(group: Group, names: dict[int, str]) -> list[tether_pb2.Process]:
    """The container's processes, in order of their ids; those that end meanwhile are left out."""
    import psutil  # not needed to boot, and slow to load under emulation

    found = []
    room = _MAX_ALL_ARGUMENTS
    for pid in group.pids()[:_MAX_PROCESSES]:
        try:
            found.append(_describe(psutil.Process(pid), names, min(room, _MAX_ARGUMENTS)))
        except psutil.Error:
            continue
        room -= sum(map(len, found[-1].args))
    return found


def _describe(process: psutil.Process, names: dict[int, str], room: int) -> tether_pb2.Process:
    with process.oneshot():
        uid = process.uids().effective
        memory, cpu = process.memory_info(), process.cpu_times()
        state, terminal = _state(process.pid)
        return tether_pb2.Process(
            pid=process.pid,
            parent_pid=process.ppid(),
            uid=uid,
            user=_text(names.get(uid, str(uid)))[:_MAX_NAME],
            terminal=terminal,
            started_unix_ns=int(process.create_time() * 1e9),
            cpu_ns=int((cpu.user + cpu.system) * 1e9),
            state=state,
            name=_text(process.name())[:_MAX_NAME],
            args=_arguments(process.cmdline(), room),
            resident_bytes=memory.rss,
            virtual_bytes=memory.vms,
            nice=process.nice(),
            threads=process.num_threads(),
        )


def _arguments(args: list[str], room: int) -> list[str]:
    """A command line cut to so many characters, each of which makes at most three bytes."""
    found = []
    for argument in args[:_MAX_ARGUMENTS]:
        if room <= 0:
            break
        found.append(_text(argument[:room]))
        room -= len(argument) + 1
    return found


def _text(text: str) -> str:
    """What the kernel or a file said, as text that a message can carry."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _state(pid: int) -> tuple[str, str]:
    """The state's letter and the terminal in /proc/PID/stat; the name before them may itself contain parentheses."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2].split()
        device = int(fields[4])
    except (OSError, IndexError, ValueError):
        return "X", "?"
    major, minor = os.major(device), os.minor(device)
    return fields[0], f"pts/{minor}" if major == _PTS_MAJOR else "?"
