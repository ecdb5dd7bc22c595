"""Instant clone without VMs: templates are notes, clones are fake VMs. Implements Cloning of drivers/base.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from fake_driver import FakeVm

from portlayer.drivers.base import Clone, DiskNames, Parent, Shape, Template
from portlayer.errors import DriverError

MIB = 1 << 20
CLONE_BYTES = 40 * MIB


class FakeGuest:
    """Implements Guest."""

    disk_names = DiskNames("image", "writable")

    def __init__(self, shape: Shape, home: FakeCloning) -> None:
        self.shape = shape
        self.vm: FakeVm | None = FakeVm()
        self.vm.agent.cannot_freeze = home.cannot_freeze
        self.runs = True
        self.has_disks = False
        self._home = home
        home.guests.append(self)

    async def open_channel(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        assert self.vm is not None
        assert self.runs, "somebody talks to a guest that stands still"
        return await self.vm.open_channel()

    async def wait_off(self) -> None:
        if self.vm is not None:
            await self.vm.off.wait()

    async def attach_practice_disks(self) -> None:
        self._home.maybe_fail("attach")
        self.has_disks = True

    async def detach_practice_disks(self) -> None:
        self.has_disks = False

    async def discard(self) -> None:
        self._home.maybe_fail("discard")
        if self.vm is not None:
            await self.vm.settle()
        if self in self._home.guests:
            self._home.guests.remove(self)

    def _rests(self) -> None:
        """What has to be so when it is put by for later."""
        assert self.vm is not None
        assert not self.has_disks
        assert not self.vm.agent.started_request
        assert self.vm.agent.rehearsals


class FakeClone(FakeGuest):
    """Implements Clone."""

    def __init__(self, shape: Shape, home: FakeCloning) -> None:
        super().__init__(shape, home)
        self.runs = False

    @property
    def phases_ns(self) -> Mapping[str, int]:
        return {"machine": 50, "restore": 5}

    async def resume(self) -> None:
        self.runs = True

    async def suspend(self) -> None:
        self._rests()
        self.runs = False

    async def private_bytes(self) -> int:
        return self._home.clone_bytes

    def become(self) -> FakeVm:
        """The VM is a machine's from now on."""
        assert self.vm is not None
        assert not self.runs
        if self.vm.off.is_set():
            raise DriverError("the clone is off")
        vm, self.vm = self.vm, None
        return vm


class FakeParent(FakeGuest):
    """Implements Parent."""

    async def freeze(self, made_in_ns: int) -> Template:
        self._home.maybe_fail("freeze")
        self._rests()
        return self._home.add_template(self.shape, made_in_ns)


class FakeTemplate:
    """Implements Template."""

    disk_bytes = 30 * MIB
    resident_bytes = 60 * MIB

    def __init__(self, shape: Shape, home: FakeCloning, made_in_ns: int) -> None:
        self.id = f"{shape.memory_bytes:032x}{shape.cpus:032x}"
        self.shape = shape
        self.created_unix_ns = self.last_used_unix_ns = time.time_ns()
        self.made_in_ns = made_in_ns
        self._home = home

    def note_use(self) -> None:
        self.last_used_unix_ns = time.time_ns()

    async def clone(self) -> Clone:
        self._home.maybe_fail("clone")
        self._home.clones_made += 1
        return FakeClone(self.shape, self._home)

    async def remove(self) -> None:
        self._home.kept.pop(self.shape, None)


class FakeCloning:
    """Implements Cloning; what it keeps outlives the port layers of a test."""

    def __init__(self) -> None:
        self.kept: dict[Shape, FakeTemplate] = {}
        # Guests that there are: of templates on their way and of clones that no machine has taken over.
        self.guests: list[FakeGuest] = []
        self.booted: list[Shape] = []
        self.clones_made = 0
        self.clone_bytes = CLONE_BYTES
        self.parents_freeze_themselves = False
        # Why guests do not freeze their VMs.
        self.cannot_freeze = ""
        # Errors of the next "boot", "attach", "freeze", "clone", "discard".
        self.fail_next: dict[str, Exception] = {}
        # While it is clear, a boot does not get on.
        self.may_boot = asyncio.Event()
        self.may_boot.set()

    rehearsals = (2, 1)

    def shape_for(self, memory_bytes: int, cpus: int) -> Shape | None:
        size = 256 * MIB
        while size < memory_bytes:
            size *= 2
        return Shape(size, cpus)

    async def templates(self) -> list[Template]:
        return list(self.kept.values())

    async def boot_parent(self, shape: Shape) -> Parent:
        self.booted.append(shape)
        await self.may_boot.wait()
        self.maybe_fail("boot")
        return FakeParent(shape, self)

    def add_template(self, shape: Shape, made_in_ns: int = 1) -> FakeTemplate:
        self.kept[shape] = FakeTemplate(shape, self, made_in_ns)
        return self.kept[shape]

    def maybe_fail(self, operation: str) -> None:
        if error := self.fail_next.pop(operation, None):
            raise error
