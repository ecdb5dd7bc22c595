"""One container's virtual machine: implements Machine on a directory of the inventory and a QEMU process.

Nothing about the process is remembered here that could not be found again: an object made after a restart of the port
layer behaves as the one that started the machine did.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path

from portlayer.drivers.base import Clone, MachineSpec, MachineUsage, PowerState
from portlayer.drivers.qemu import command
from portlayer.drivers.qemu.datastore import LocalDatastore
from portlayer.drivers.qemu.failures import os_errors
from portlayer.drivers.qemu.guest import QemuClone
from portlayer.drivers.qemu.instance import Instance
from portlayer.drivers.qemu.inventory import WRITABLE_DISK, Inventory
from portlayer.drivers.qemu.qmp import DiskProblem, Monitor
from portlayer.drivers.qemu.stall import Stall
from portlayer.drivers.uninterrupted import uninterrupted
from portlayer.errors import ConflictError, DriverError, NotFoundError

# The directory of the process, within the machine's own, and what is kept of the run before.
PROCESS = "vm"
OLD_CONSOLE_LOG = "console.log.1"
_log = logging.getLogger(__name__)


class QemuMachine:
    """Implements Machine."""

    def __init__(
        self, spec: MachineSpec, inventory: Inventory, datastore: LocalDatastore, host: Callable[[], command.Host]
    ) -> None:
        self._spec = spec
        self._inventory = inventory
        self._datastore = datastore
        self._host = host
        self._instance = Instance(self.directory / PROCESS, f"machine {self.id}", self._report)
        self._stall = Stall(self.directory, self._go_on)
        self._lock = asyncio.Lock()  # guards the power, and the one control connection that QEMU accepts

    @property
    def id(self) -> str:
        return self._spec.id

    @property
    def spec(self) -> MachineSpec:
        return self._spec

    @property
    def directory(self) -> Path:
        return self._inventory.directory(self.id)

    @property
    def location(self) -> str:
        return str(self.directory)

    @property
    def console_log(self) -> str | None:
        return str(self.directory / PROCESS / command.CONSOLE_LOG)

    async def read_record(self) -> bytes:
        with os_errors(f"reading the record of machine {self.id}"):
            return await asyncio.to_thread(self._inventory.read_record, self.id)

    async def write_record(self, record: bytes) -> None:
        with os_errors(f"writing the record of machine {self.id}"):
            await asyncio.to_thread(self._inventory.write_record, self.id, record)

    async def power_state(self) -> PowerState:
        async with self._lock:
            if not self._instance.is_running:
                await self._drop_monitor()
                return PowerState.OFF
            try:
                return await (await self._instance.control()).power_state()
            except DriverError:
                await self._drop_monitor()
                if self._instance.is_running:
                    raise
                return PowerState.OFF  # it ended while we asked

    async def power_on(self, clone: Clone | None = None) -> None:
        try:
            async with self._lock:
                if self._instance.is_running:
                    return
                await self._drop_monitor()
                await uninterrupted(self._boot() if clone is None else self._move_into(clone))
        finally:
            if clone is not None:
                await clone.discard()

    async def power_off(self) -> None:
        async with self._lock:
            await self._instance.end()
            await self._drop_monitor()

    async def kill(self) -> int | None:
        """Cuts the power for good, without a wait; see process.kill. The caller removes the machine."""
        async with self._lock:
            return self._instance.kill()

    async def wait_off(self) -> None:
        await self._instance.wait_off()

    @property
    def stalled(self) -> bool:
        """Whether QEMU has stopped it until the host's disk has space again."""
        return self._stall.under_way

    async def pause(self) -> None:
        self._stall.end()  # what was paused by order goes on by order
        await self._command(Monitor.pause)

    async def resume(self) -> None:
        await self._command(Monitor.resume)

    async def open_channel(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await self._instance.open_channel()

    async def writable_disk_usage(self) -> int:
        try:
            return (self.directory / WRITABLE_DISK).stat().st_blocks * 512
        except FileNotFoundError as error:
            raise NotFoundError(f"machine {self.id} does not exist") from error

    async def usage(self) -> MachineUsage | None:
        return None  # its agent knows more than QEMU does

    async def release(self) -> None:
        """Lets go of connections; the machine goes on."""
        async with self._lock:
            await self._drop_monitor()

    async def _boot(self) -> None:
        image_disk = self._image_disk()
        host = self._host()
        self._put_last_run_by()
        await self._instance.start(
            lambda qmp_fd, line: command.machine_command(
                self._spec,
                host,
                image_disk=image_disk,
                writable_disk=self.directory / WRITABLE_DISK,
                qmp_fd=qmp_fd,
                line=line,
            ),
            channel=host.channel,
        )

    async def _move_into(self, clone: Clone) -> None:
        """Gives the clone this machine's disks, takes its process over and lets it run."""
        assert isinstance(clone, QemuClone)
        image_disk = self._image_disk()
        await clone.attach(image_disk, self.directory / WRITABLE_DISK)
        self._put_last_run_by()
        with os_errors(f"starting machine {self.id}"):
            self._instance = clone.become(self.directory / PROCESS, self._report)
        try:
            await (await self._instance.control()).resume()
        except DriverError:
            await self._instance.end()
            raise

    def _image_disk(self) -> Path:
        image_disk = self._datastore.path(self._spec.image_disk)
        if not self.directory.is_dir():
            raise NotFoundError(f"machine {self.id} does not exist")
        if not image_disk.is_file():
            raise DriverError(f"image disk {self._spec.image_disk} is not in the datastore")
        return image_disk

    def _put_last_run_by(self) -> None:
        """The console of the run before tells why it ended; all else of it goes."""
        last = self.directory / PROCESS
        with os_errors(f"clearing up after the last run of machine {self.id}"):
            with contextlib.suppress(FileNotFoundError):
                (last / command.CONSOLE_LOG).replace(self.directory / OLD_CONSOLE_LOG)
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(last)

    async def _command(self, call: Callable[[Monitor], Coroutine[None, None, None]]) -> None:
        async with self._lock:
            if not self._instance.is_running:
                raise ConflictError(f"machine {self.id} is off")
            try:
                await call(await self._instance.control())
            except DriverError:
                await self._drop_monitor()
                raise

    async def _drop_monitor(self) -> None:
        self._stall.end()
        await self._instance.release()

    def _report(self, problem: DiskProblem) -> None:
        _log.error("machine %s: %s", self.id, problem.words)
        if problem.no_space:
            self._stall.begin()

    async def _go_on(self) -> None:
        async with self._lock:
            if self._instance.is_running and await (monitor := await self._instance.control()).stalled():
                await monitor.resume()
                _log.warning("machine %s: the disk has space again, the guest goes on", self.id)
