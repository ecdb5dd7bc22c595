"""The container's control group (cgroup v2) and all in it: limits where the VM's size does not already give them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from tether.v1 import tether_pb2

ROOT = Path("/sys/fs/cgroup")
_CONTROLLERS = ("cpu", "memory", "pids", "io")
_PERIOD_US = 100_000


class Group:
    """The group "container" below a group without processes of its own (the hierarchy's root may have some)."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self.path = root / "container"

    def create(self) -> None:
        """Makes the group; no effect when it is there."""
        if self.path.exists():
            return
        available = (self._root / "cgroup.controllers").read_text().split()
        wanted = [f"+{name}" for name in _CONTROLLERS if name in available]
        (self._root / "cgroup.subtree_control").write_text(" ".join(wanted))
        self.path.mkdir(exist_ok=True)

    def limit(self, request: tether_pb2.StartRequest) -> None:
        """Sets the group's limits; OSError when the kernel does not know one that is asked for."""
        if request.memory_limit_bytes:
            (self.path / "memory.max").write_text(str(request.memory_limit_bytes))
        if request.cpu_limit_ns_per_s:
            quota = max(1000, request.cpu_limit_ns_per_s * _PERIOD_US // 1_000_000_000)
            (self.path / "cpu.max").write_text(f"{quota} {_PERIOD_US}")
        if request.pids_limit:
            (self.path / "pids.max").write_text(str(request.pids_limit))

    def join(self) -> None:
        """Moves this process into the group."""
        (self.path / "cgroup.procs").write_text("0")

    def pids(self) -> list[int]:
        """Ids of the processes in the group, in order."""
        return sorted(int(line) for line in (self.path / "cgroup.procs").read_text().split())

    def kill(self) -> None:
        """Kills every process in the group; none can escape by forking."""
        (self.path / "cgroup.kill").write_text("1")

    def remove(self) -> None:
        """Undoes `create`; the group must be empty."""
        with suppress(FileNotFoundError):
            self.path.rmdir()

    def keyed(self, file: str) -> dict[str, int]:
        """A flat-keyed file such as cpu.stat; empty when it is not there."""
        lines = self.text(file).splitlines()
        return {key: int(value) for key, _, value in (line.partition(" ") for line in lines) if value.isdigit()}

    def number(self, file: str) -> int:
        """A file with one number; 0 for "max" and when it is not there."""
        text = self.text(file).strip()
        return int(text) if text.isdigit() else 0

    def text(self, file: str) -> str:
        """A file's contents; empty when it is not there."""
        try:
            return (self.path / file).read_text()
        except OSError:
            return ""

    def oom_kills(self) -> int:
        """How many processes of the container the kernel killed for want of memory."""
        return self.keyed("memory.events").get("oom_kill", 0)
