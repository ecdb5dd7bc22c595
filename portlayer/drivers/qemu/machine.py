"""One container's virtual machine: implements Machine on a directory of the inventory and a QEMU process.

Nothing about the process is remembered here that could not be found again: an object made after a restart of the port
layer behaves as the one that started the machine did.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TypeVar

from portlayer.drivers.base import MachineSpec, PowerState
from portlayer.drivers.qemu import command, files, process, vsock
from portlayer.drivers.qemu.datastore import LocalDatastore
from portlayer.drivers.qemu.failures import os_errors, qemu_failure
from portlayer.drivers.qemu.inventory import WRITABLE_DISK, Inventory
from portlayer.drivers.qemu.qmp import DiskProblem, Monitor
from portlayer.drivers.qemu.stall import Stall
from portlayer.errors import ConflictError, DriverError, NotFoundError

CONSOLE_LIMIT_BYTES = 4 << 20
MESSAGES_LIMIT_BYTES = 1 << 20
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class QemuMachine:
    """Implements Machine."""

    def __init__(
        self, spec: MachineSpec, inventory: Inventory, datastore: LocalDatastore, host: Callable[[], command.Host]
    ) -> None:
        self._spec = spec
        self._inventory = inventory
        self._datastore = datastore
        self._host = host
        self._monitor: Monitor | None = None
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
    def console_log(self) -> Path | None:
        return self.directory / command.CONSOLE_LOG

    async def read_record(self) -> bytes:
        with os_errors(f"reading the record of machine {self.id}"):
            return await asyncio.to_thread(self._inventory.read_record, self.id)

    async def write_record(self, record: bytes) -> None:
        with os_errors(f"writing the record of machine {self.id}"):
            await asyncio.to_thread(self._inventory.write_record, self.id, record)

    async def power_state(self) -> PowerState:
        async with self._lock:
            if not self._is_running():
                await self._drop_monitor()
                return PowerState.OFF
            self._bound_messages()
            try:
                return await (await self._control()).power_state()
            except DriverError:
                await self._drop_monitor()
                if self._is_running():
                    raise
                return PowerState.OFF  # it ended while we asked

    async def power_on(self) -> None:
        async with self._lock:
            if self._is_running():
                return
            await self._drop_monitor()
            await uninterrupted(self._start())

    async def power_off(self) -> None:
        async with self._lock:
            with process.running(self.directory, self.id) as pidfd:
                if pidfd is not None:
                    await process.end(pidfd)
            await self._drop_monitor()

    async def wait_off(self) -> None:
        with process.running(self.directory, self.id) as pidfd:
            if pidfd is not None:
                await process.wait_ended(pidfd)

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
        argv = process.command_line(self.directory, self.id)
        if argv is None:
            raise DriverError(f"machine {self.id} is off")
        self._bound_messages()
        with os_errors(f"connecting to the agent of machine {self.id}"):
            # Asked of the machine, not of today's settings: it may have been started under others.
            if (cid := command.guest_cid(argv)) is not None:
                return await vsock.connect(cid)
            return await asyncio.open_unix_connection(sock=files.connect(self.directory / command.AGENT_SOCKET))

    async def writable_disk_usage(self) -> int:
        try:
            return (self.directory / WRITABLE_DISK).stat().st_blocks * 512
        except FileNotFoundError as error:
            raise NotFoundError(f"machine {self.id} does not exist") from error

    async def release(self) -> None:
        """Lets go of connections; the machine goes on."""
        async with self._lock:
            await self._drop_monitor()

    def _is_running(self) -> bool:
        return process.is_running(self.directory, self.id)

    async def _start(self) -> None:
        """Starts QEMU and waits until it answers, so that whatever it objects to is told here."""
        image_disk = self._datastore.path(self._spec.image_disk)
        if not self.directory.is_dir():
            raise NotFoundError(f"machine {self.id} does not exist")
        if not image_disk.is_file():
            raise DriverError(f"image disk {self._spec.image_disk} is not in the datastore")
        log = self.directory / command.LOG_FILE
        log.unlink(missing_ok=True)
        action = f"starting machine {self.id}"
        with os_errors(action), contextlib.ExitStack() as stack:
            self._put_console_by()
            qmp = stack.enter_context(files.listen(self.directory / command.QMP_SOCKET))
            host = self._host()
            line = self._line(host, stack)
            argv = command.machine_command(
                self._spec,
                host,
                image_disk=image_disk,
                writable_disk=self.directory / WRITABLE_DISK,
                qmp_fd=qmp.fileno(),
                line=line,
            )
            async with process.keeper(self.directory, command.CONSOLE_LOG, CONSOLE_LIMIT_BYTES) as console:
                await process.spawn(argv, self.directory, log, (qmp.fileno(), line.fd), stdout=console)
        # QEMU alone holds the sockets now: if it gives up, connecting or reading fails at once.
        try:
            await self._control()
        except DriverError as error:
            with process.running(self.directory, self.id) as pidfd:
                if pidfd is not None:
                    await process.end(pidfd)
            raise qemu_failure(action, log) from error

    def _put_console_by(self) -> None:
        """The console of the run before tells why it ended."""
        with contextlib.suppress(FileNotFoundError):
            (self.directory / command.CONSOLE_LOG).replace(self.directory / command.OLD_CONSOLE_LOG)

    def _line(self, host: command.Host, stack: contextlib.ExitStack) -> command.Line:
        if host.channel == vsock.VSOCK:
            return stack.enter_context(vsock.reserve(self.id))
        return command.SerialLine(stack.enter_context(files.listen(self.directory / command.AGENT_SOCKET)).fileno())

    async def _command(self, call: Callable[[Monitor], Coroutine[None, None, None]]) -> None:
        async with self._lock:
            if not self._is_running():
                raise ConflictError(f"machine {self.id} is off")
            try:
                await call(await self._control())
            except DriverError:
                await self._drop_monitor()
                raise

    async def _control(self) -> Monitor:
        if self._monitor is None:
            self._monitor = await Monitor.open(self.directory / command.QMP_SOCKET, self._report)
        return self._monitor

    async def _drop_monitor(self) -> None:
        self._stall.end()
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            await monitor.close()

    def _report(self, problem: DiskProblem) -> None:
        _log.error("machine %s: %s", self.id, problem.words)
        if problem.no_space:
            self._stall.begin()

    async def _go_on(self) -> None:
        async with self._lock:
            if self._is_running() and await (monitor := await self._control()).stalled():
                await monitor.resume()
                _log.warning("machine %s: the disk has space again, the guest goes on", self.id)

    def _bound_messages(self) -> None:
        """QEMU has few words, but a guest may find a way to make it say them over and over."""
        with contextlib.suppress(OSError):
            if (self.directory / command.LOG_FILE).stat().st_size > MESSAGES_LIMIT_BYTES:
                os.truncate(self.directory / command.LOG_FILE, 0)


async def uninterrupted(work: Coroutine[None, None, _T]) -> _T:
    """Runs `work` to its end even when the caller is cancelled, so that nothing is left half done."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("after a cancelled call: %s", error)
        raise
