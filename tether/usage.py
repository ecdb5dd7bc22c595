"""What the container uses: resource figures and the list of its processes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tether import cgroup
from tether.v1 import tether_pb2

if TYPE_CHECKING:
    import psutil

_MAX_ARGUMENT = 4096
_MAX_PROCESSES = 1000


def stats() -> tether_pb2.StatsResponse:
    """One sample."""
    cpu = cgroup.keyed("cpu.stat")
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
        memory_usage_bytes=cgroup.number("memory.current"),
        memory_limit_bytes=cgroup.number("memory.max"),
        memory_stat=cgroup.keyed("memory.stat"),
        pids=cgroup.number("pids.current"),
        pids_limit=cgroup.number("pids.max"),
        block=_block(),
        vm_memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    )


def _block() -> list[tether_pb2.BlockStats]:
    """Traffic by device, from io.stat: "8:0 rbytes=1 wbytes=2 rios=3 wios=4 ..."."""
    try:
        lines = (cgroup.CONTAINER / "io.stat").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
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


def processes(names: dict[int, str]) -> list[tether_pb2.Process]:
    """The container's processes, in order of their ids; those that end meanwhile are left out."""
    import psutil  # not needed to boot, and slow to load under emulation

    pids = sorted(int(line) for line in (cgroup.CONTAINER / "cgroup.procs").read_text().split())
    found = []
    for pid in pids[:_MAX_PROCESSES]:
        try:
            found.append(_describe(psutil.Process(pid), names))
        except psutil.Error:
            continue
    return found


def _describe(process: psutil.Process, names: dict[int, str]) -> tether_pb2.Process:
    with process.oneshot():
        uid = process.uids().effective
        memory, cpu = process.memory_info(), process.cpu_times()
        terminal = process.terminal()
        return tether_pb2.Process(
            pid=process.pid,
            parent_pid=process.ppid(),
            uid=uid,
            user=names.get(uid, str(uid)),
            terminal=terminal.removeprefix("/dev/") if terminal else "?",
            started_unix_ns=int(process.create_time() * 1e9),
            cpu_ns=int((cpu.user + cpu.system) * 1e9),
            state=_state(process.pid),
            name=process.name(),
            args=[argument[:_MAX_ARGUMENT] for argument in process.cmdline()[:256]],
            resident_bytes=memory.rss,
            virtual_bytes=memory.vms,
            nice=process.nice(),
            threads=process.num_threads(),
        )


def _state(pid: int) -> str:
    """The letter behind the name in /proc/PID/stat; the name may itself contain parentheses."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2][:1]
    except OSError:
        return "X"
