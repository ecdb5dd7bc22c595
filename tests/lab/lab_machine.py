"""One VM of the lab: brings QEMU to where the inventory says it ought to be, again and again.

    off --on--> running --suspended--> paused --on--> running
    running --off, or the guest's own power-off--> off        running --another boot time--> off --> running

A source of forks stays where its first fork found it (frozen) until it is powered off. One task does all this, so that
nothing here happens at once with anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import lab_disks
from lab_hardware import Hardware, LabError, NetworkPort
from lab_port import Dial, Passage, PortLine
from lab_qemu import Qemu

ON, OFF, SUSPENDED = "poweredOn", "poweredOff", "suspended"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """What the inventory says. `boot` changes with each power-on."""

    power: str
    boot: object
    host: str
    hardware: Hardware


class LabMachine:
    """Made when the VM is first seen, closed when it is gone. `report_off` tells the inventory."""

    def __init__(
        self,
        directory: Path,
        dial_as: Callable[[Hardware], Dial],
        source: Callable[[str], LabMachine | None],
        report_off: Callable[[], Awaitable[None]],
    ) -> None:
        self._directory = directory
        self._dial_as = dial_as
        self._source = source
        self._report_off = report_off
        self._wanted: Wanted | None = None
        self._have: Wanted | None = None  # what runs; None while off
        self._qemu: Qemu | None = None
        self._lines: dict[int, PortLine] = {}
        self._frozen: Path | None = None
        self._forked = False
        self._runs = 0
        self._lock = asyncio.Lock()
        self._news = asyncio.Event()
        self._worker = asyncio.create_task(self._work())
        self._watch: asyncio.Task[None] | None = None

    def want(self, wanted: Wanted) -> None:
        if wanted != self._wanted:
            self._wanted = wanted
            self._news.set()

    async def close(self) -> None:
        """Ends it and removes what the lab kept of it."""
        self._worker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._worker
        async with self._lock:
            await self._end()
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    async def freeze(self) -> tuple[Path, Hardware]:
        """Its memory and devices in a file, and what hardware they belong to; it does not run any more."""
        async with self._lock:
            if self._qemu is None or self._have is None:
                raise LabError("the source of an instant clone is not on")
            if self._frozen is None:
                state = self._directory / "frozen"
                await self._qemu.save(state)
                self._frozen = state
            return self._frozen, self._have.hardware

    async def _work(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            wanted = self._wanted
            assert wanted is not None
            try:
                async with self._lock:
                    await self._go_to(wanted)
            except Exception as error:  # also what nobody expected: without its worker the VM would hang in silence
                unexpected = not isinstance(error, (LabError, OSError))
                _log.error("%s: %s", wanted.hardware.name, error, exc_info=unexpected)
                async with self._lock:
                    await self._end()
                await self._report_off()

    async def _go_to(self, wanted: Wanted) -> None:
        have = self._have
        if wanted.power == OFF:
            await self._end()
        elif wanted.power == SUSPENDED:
            if have is not None and have.power == ON:
                await self._suspend(wanted)
        elif have is None:
            await self._start(wanted)
        elif have.power == SUSPENDED:
            await self._resume(wanted)
        elif have.boot != wanted.boot:
            await self._end()
            await self._start(wanted)
        else:
            if have.host != wanted.host and self._frozen is None:
                await self._move(wanted.host)
            await self._change(wanted)

    async def _start(self, wanted: Wanted) -> None:
        hardware = wanted.hardware
        await asyncio.to_thread(prepare_disks, hardware)
        source = None if self._forked or hardware.forked_from is None else self._source(hardware.forked_from)
        if source is None:
            self._qemu = await Qemu.start(hardware, self._next_directory())
        else:
            state, layout = await source.freeze()
            hardware = as_forked(hardware, layout)
            self._qemu = await Qemu.start(hardware, self._next_directory(), incoming="defer")
            self._forked = True
            await self._qemu.receive(f"exec:cat {state}")
        await self._take_over(self._qemu, replace(wanted, hardware=hardware))
        if source is not None:
            await self._qemu.go_on()
            await self._change(wanted)

    async def _move(self, host: str) -> None:
        """vMotion: another QEMU goes on where this one stops, and the calls of its ports go with it.

        The guest stands still from the first byte of its memory to the last: that is quick enough here. What is on its
        way to the guest travels with its port, what it wrote leaves by the old call.
        """
        old, have = self._qemu, self._have
        assert old is not None
        assert have is not None
        hardware = replace(have.hardware, append_to_files=True)
        new = await Qemu.start(hardware, self._next_directory(), incoming="defer")
        try:
            for line in self._lines.values():
                await line.hold()
            await old.pause()
            where = f"unix:{self._directory / 'vmotion'}"
            await new.receive(where, meanwhile=old.send(where))
        except BaseException:
            await new.end()
            raise
        if self._watch is not None:
            self._watch.cancel()
        self._qemu = new
        await old.end(keep_lines=True)
        unread = old.hang_up()
        passages = {number: await line.depart(unread[number]) for number, line in self._lines.items()}
        await self._take_over(new, replace(have, host=host), passages)
        await new.go_on()

    def _next_directory(self) -> Path:
        self._runs += 1
        return self._directory / str(self._runs)

    async def _take_over(self, qemu: Qemu, have: Wanted, arrived: Mapping[int, Passage] | None = None) -> None:
        """Serial lines and end of a QEMU are this VM's from now on."""
        self._have = have
        dial = self._dial_as(have.hardware)
        self._lines = {number: PortLine(line, dial) for number, line in qemu.lines.items()}
        for number, line in self._lines.items():
            await line.open((arrived or {}).get(number))
        self._connect(have.hardware)
        self._watch = asyncio.create_task(self._see_end(qemu))

    def _connect(self, hardware: Hardware | None) -> None:
        ports = dict(enumerate(hardware.ports)) if hardware is not None else {}
        for number, line in self._lines.items():
            port = ports.get(number)
            line.connect(port if isinstance(port, NetworkPort) and port.plugged_in else None)

    async def _see_end(self, qemu: Qemu) -> None:
        await qemu.wait_ended()
        async with self._lock:
            if self._qemu is not qemu or self._have is None:
                return
            _log.info("%s has gone off %s", self._have.hardware.name, qemu.complaint)
            boot = self._have.boot
            self._watch = None
            await self._end()
            if self._wanted is not None and (self._wanted.power, self._wanted.boot) == (ON, boot):
                await self._report_off()

    async def _end(self) -> None:
        self._have = None
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        for line in self._lines.values():
            await line.close()
        self._lines = {}
        if self._qemu is not None:
            await self._qemu.end()
            self._qemu = None
        if self._frozen is not None:
            self._frozen.unlink(missing_ok=True)
            self._frozen = None

    async def _suspend(self, wanted: Wanted) -> None:
        """On ESXi the VM's process ends, and its connections with it."""
        assert self._qemu is not None
        await self._qemu.pause()
        self._connect(None)
        self._have = wanted

    async def _resume(self, wanted: Wanted) -> None:
        assert self._qemu is not None
        self._have = replace(wanted, hardware=self._have.hardware if self._have else wanted.hardware)
        if self._frozen is None:
            await self._qemu.go_on()
        self._connect(wanted.hardware)
        await self._change(wanted)

    async def _change(self, wanted: Wanted) -> None:
        """Hot add, hot remove and reconnection."""
        assert self._qemu is not None
        assert self._have is not None
        before, after = self._have.hardware, wanted.hardware
        for disk in (one for one in before.disks if one not in after.disks):
            await self._qemu.remove(disk.id)
        for nic in (one for one in before.nics if one not in after.nics):
            await self._qemu.remove(nic.id)
        await asyncio.to_thread(prepare_disks, after)
        for disk in (one for one in after.disks if one not in before.disks):
            await self._qemu.add_disk(disk)
        for nic in (one for one in after.nics if one not in before.nics):
            await self._qemu.add_nic(nic)
        self._connect(after)
        self._have = wanted


def as_forked(own: Hardware, source: Hardware) -> Hardware:
    """The hardware that a fork begins with: shaped like its source's, since memory and devices fit no other.

    What is behind a device is the fork's own where it has one in that place; else nothing that it does is kept.
    """
    disks = {disk.place: disk for disk in own.disks}
    nics = {nic.unit: nic for nic in own.nics}
    return replace(
        own,
        cpus=source.cpus,
        memory_mb=source.memory_mb,
        efi=source.efi,
        cdrom=source.cdrom,
        sata=source.sata,
        buses=source.buses,
        disks=tuple(disks.get(disk.place, replace(disk, thrown_away=True)) for disk in source.disks),
        nics=tuple(nics.get(nic.unit, nic) for nic in source.nics),
        ports=own.ports if len(own.ports) == len(source.ports) else tuple(None for _ in source.ports),
    )


def prepare_disks(hardware: Hardware) -> None:
    """Makes its disks what ESXi would have made of them. LabError when one is broken."""
    for disk in hardware.disks:
        lab_disks.prepare(disk.chain)
