"""A hypervisor without VMs, for tests of the layers above drivers: machines are directories and a FakeAgent each."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fake_agent import FakeAgent

from portlayer.drivers.base import (
    Capacity,
    Clone,
    Cloning,
    DiskNames,
    Machine,
    MachineChange,
    MachineSpec,
    MachineUsage,
    PowerState,
)
from portlayer.errors import ConflictError, DriverError, NotFoundError

CAPACITY = Capacity(cpus=2, memory_bytes=16 << 30, machine_memory_bytes=8 << 30)


async def open_line(
    agent: FakeAgent, keep: Callable[[asyncio.Task[None]], object]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The host's end of a line to the agent, whose end a task serves; a caller that is cancelled leaves no socket."""
    host, guest = socket.socketpair()
    try:
        streams = await asyncio.open_connection(sock=guest)
    except BaseException:
        host.close()
        raise
    keep(asyncio.create_task(agent.serve(*streams)))
    return await asyncio.open_connection(sock=host)


class FakeVm:
    """A VM that is on, until it goes off for good; it has an agent."""

    def __init__(self) -> None:
        self.agent = FakeAgent(self.cut)
        self.off = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()

    async def open_channel(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.off.is_set():
            raise DriverError("off")
        return await open_line(self.agent, self._keep)

    def cut(self) -> None:
        """Its power is cut."""
        if not self.off.is_set():
            self.off.set()
            self._keep(asyncio.ensure_future(self.agent.end()))

    async def settle(self) -> None:
        """It is off, and nothing of it goes on."""
        self.cut()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)


class FakeMachine:
    """Implements Machine."""

    def __init__(self, spec: MachineSpec, directory: Path) -> None:
        self.spec = spec
        self.directory = directory
        self.paused = False
        self.fail_next: dict[str, Exception] = {}
        self.boots = True
        # What the agent will hear and not answer.
        self.mute: set[str] = set()
        self.counted: MachineUsage | None = None
        self._vm: FakeVm | None = None

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def location(self) -> str:
        return str(self.directory)

    @property
    def console_log(self) -> str | None:
        return str(self.directory / "console.log")

    @property
    def agent(self) -> FakeAgent | None:
        """None while it is off."""
        return None if self._vm is None or self._vm.off.is_set() else self._vm.agent

    async def read_record(self) -> bytes:
        return (self.directory / "record").read_bytes()

    async def write_record(self, record: bytes) -> None:
        self._maybe_fail("write_record")
        if not self.directory.exists():
            raise NotFoundError("gone")
        (self.directory / "record").write_bytes(record)

    async def power_state(self) -> PowerState:
        if self.agent is None:
            return PowerState.OFF
        return PowerState.PAUSED if self.paused else PowerState.RUNNING

    async def power_on(self, clone: Clone | None = None) -> None:
        try:
            self._maybe_fail("power_on")
            if self.agent is None:
                self.paused = False
                self._vm = FakeVm() if clone is None else clone.become()  # type: ignore[attr-defined]
                self._vm.agent.mute |= self.mute
                if not self.boots:
                    self._vm.cut()
        finally:
            if clone is not None:
                await clone.discard()

    async def power_off(self) -> None:
        if self._vm is not None:
            await self._vm.settle()

    async def restart(self) -> None:
        """Its VM boots anew, and was never seen to be off."""
        assert self._vm is not None
        before, self._vm = self._vm, FakeVm()
        await before.agent.end()

    async def wait_off(self) -> None:
        if self._vm is not None:
            await self._vm.off.wait()

    async def pause(self) -> None:
        if self.agent is None:
            raise ConflictError("off")
        self.paused = True

    async def resume(self) -> None:
        self.paused = False

    async def open_channel(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._vm is None:
            raise DriverError("off")
        return await self._vm.open_channel()

    async def writable_disk_usage(self) -> int:
        return 4096

    async def usage(self) -> MachineUsage | None:
        self._maybe_fail("usage")
        return self.counted

    def _maybe_fail(self, operation: str) -> None:
        if error := self.fail_next.pop(operation, None):
            raise error


class FakeDriver:
    """Implements MachineDriver; survives the port layers of a test, as a hypervisor does."""

    name = "fake"
    disk_names = DiskNames("image", "writable")

    def __init__(self, root: Path) -> None:
        self._root = root
        self.machines: dict[str, FakeMachine] = {}
        self.fail_next: dict[str, Exception] = {}
        self.cloning: Cloning | None = None
        self.networks: dict[str, str] = {}
        self.tell: Callable[[MachineChange], None] = lambda change: None

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def create(self, spec: MachineSpec, record: bytes) -> Machine:
        if error := self.fail_next.pop("create", None):
            raise error
        directory = self._root / spec.id
        directory.mkdir(parents=True)
        (directory / "record").write_bytes(record)
        self.machines[spec.id] = FakeMachine(spec, directory)
        return self.machines[spec.id]

    async def list(self) -> list[Machine]:
        return list(self.machines.values())

    async def destroy(self, machine: Machine) -> None:
        if error := self.fail_next.pop("destroy", None):
            raise error
        await machine.power_off()
        self.machines.pop(machine.id, None)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(machine.directory)

    def on_change(self, listener: Callable[[MachineChange], None]) -> None:
        self.tell = listener

    async def capacity(self) -> Capacity:
        return CAPACITY

    async def info(self) -> Mapping[str, str]:
        return {"Accelerator": "none", "Guest kernel": "6.1"}

    async def dismantle(self) -> Sequence[str]:
        return ["a folder: it is not empty"]

    async def power_off_all(self) -> None:
        """For the end of a test."""
        for machine in self.machines.values():
            await machine.power_off()
