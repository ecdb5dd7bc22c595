"""Limits inside the VM (cgroup v2), where its size does not already give them."""

from __future__ import annotations

from pathlib import Path

from tether.v1 import tether_pb2

ROOT = Path("/sys/fs/cgroup")
CONTAINER = ROOT / "container"
_PERIOD_US = 100_000


def create(request: tether_pb2.StartRequest) -> None:
    """Makes the container's group and sets its limits."""
    (ROOT / "cgroup.subtree_control").write_text("+cpu +memory +pids +io")
    CONTAINER.mkdir(exist_ok=True)
    if request.memory_limit_bytes:
        (CONTAINER / "memory.max").write_text(str(request.memory_limit_bytes))
    if request.cpu_limit_ns_per_s:
        quota = max(1000, request.cpu_limit_ns_per_s * _PERIOD_US // 1_000_000_000)
        (CONTAINER / "cpu.max").write_text(f"{quota} {_PERIOD_US}")
    if request.pids_limit:
        (CONTAINER / "pids.max").write_text(str(request.pids_limit))


def join() -> None:
    """Moves this process into the container's group."""
    (CONTAINER / "cgroup.procs").write_text("0")


def keyed(file: str) -> dict[str, int]:
    """A flat-keyed file such as cpu.stat; empty when it is not there."""
    try:
        lines = (CONTAINER / file).read_text().splitlines()
    except OSError:
        return {}
    return {key: int(value) for key, _, value in (line.partition(" ") for line in lines) if value.isdigit()}


def number(file: str) -> int:
    """A file with one number; 0 for "max" and when it is not there."""
    try:
        text = (CONTAINER / file).read_text().strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0


def oom_kills() -> int:
    """How many processes of the container the kernel killed for want of memory."""
    return keyed("memory.events").get("oom_kill", 0)
