"""One QEMU and the directory it works in: started, spoken to, moved, ended.

Nothing about the process is remembered here that could not be found again: an Instance made on the directory after a
restart of the port layer behaves as the one that started the process did.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from portlayer.drivers.qemu import command, files, process, vsock
from portlayer.drivers.qemu.failures import os_errors, qemu_failure
from portlayer.drivers.qemu.qmp import DiskProblem, Monitor
from portlayer.drivers.uninterrupted import uninterrupted
from portlayer.errors import DriverError

CONSOLE_LIMIT_BYTES = 4 << 20
_MESSAGES_LIMIT_BYTES = 1 << 20

# Given the descriptor for the control socket and the agent's line, QEMU's command line.
Argv = Callable[[int, command.Line], list[str]]


def _nobody_listens(_problem: DiskProblem) -> None:
    pass


class Instance:
    """See the module's docstring. `what` names it in messages; the caller lets one thing at a time happen to it."""

    def __init__(self, directory: Path, what: str, on_problem: Callable[[DiskProblem], None] = _nobody_listens) -> None:
        self.directory = directory
        self._what = what
        self._on_problem = on_problem
        self._monitor: Monitor | None = None

    @property
    def is_running(self) -> bool:
        return process.is_running(self.directory)

    async def start(self, argv: Argv, *, inherited: Sequence[int] = (), channel: str = vsock.VIRTIO) -> None:
        """Makes the directory, starts QEMU there and waits until it answers: what it objects to is told here.

        `inherited` are descriptors that QEMU gets. On failure no process is left. A caller that is cancelled waits: a
        QEMU that has not written its pid file yet would not be found.
        """
        await uninterrupted(self._start(argv, inherited, channel))

    async def _start(self, argv: Argv, inherited: Sequence[int], channel: str) -> None:
        action = f"starting {self._what}"
        log = self.directory / command.LOG_FILE
        with os_errors(action), contextlib.ExitStack() as stack:
            self.directory.mkdir(mode=0o700)
            qmp = stack.enter_context(files.listen(self.directory / command.QMP_SOCKET))
            line = self._line(channel, stack)
            given = (qmp.fileno(), line.fd, *inherited)
            async with process.keeper(self.directory, command.CONSOLE_LOG, CONSOLE_LIMIT_BYTES) as console:
                await process.spawn(argv(qmp.fileno(), line), self.directory, log, given, stdout=console)
        # QEMU alone holds the sockets now: if it gives up, connecting or reading fails at once.
        try:
            await self.control()
        except DriverError as error:
            await self.end()
            raise qemu_failure(action, log) from error

    def _line(self, channel: str, stack: contextlib.ExitStack) -> command.Line:
        if channel == vsock.VSOCK:
            return stack.enter_context(vsock.reserve(os.urandom(4).hex()))
        return command.SerialLine(stack.enter_context(files.listen(self.directory / command.AGENT_SOCKET)).fileno())

    async def control(self) -> Monitor:
        """The control connection, of which QEMU accepts one."""
        if self._monitor is None:
            self._monitor = await Monitor.open(self.directory / command.QMP_SOCKET, self._report)
        return self._monitor

    def _report(self, problem: DiskProblem) -> None:
        self._on_problem(problem)

    async def release(self) -> None:
        """Lets go of the control connection; QEMU goes on."""
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            await monitor.close()

    async def open_channel(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A byte stream to the agent."""
        argv = process.command_line(self.directory)
        if argv is None:
            raise DriverError(f"{self._what} is off")
        self._bound_messages()
        with os_errors(f"connecting to the agent of {self._what}"):
            # Asked of the process, not of today's settings: it may have been started under others.
            if (cid := command.guest_cid(argv)) is not None:
                return await vsock.connect(cid)
            return await asyncio.open_unix_connection(sock=files.connect(self.directory / command.AGENT_SOCKET))

    async def wait_off(self) -> None:
        with process.running(self.directory) as pidfd:
            if pidfd is not None:
                await process.wait_ended(pidfd)

    async def end(self) -> None:
        """Ends QEMU and waits until it is gone. No effect when it is."""
        with process.running(self.directory) as pidfd:
            if pidfd is not None:
                await process.end(pidfd)
        await self.release()

    def kill(self) -> int | None:
        """Kills QEMU without a wait; see process.kill."""
        return process.kill(self.directory)

    async def remove(self) -> None:
        """Kills QEMU, whose guest is of no use to anybody, and removes its directory with whatever else works there."""
        if (pidfd := self.kill()) is not None:
            await process.wait_gone(pidfd)
        await self.release()
        await process.end_all_below(self.directory)
        await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)

    def hand_over(self, target: Path, on_problem: Callable[[DiskProblem], None]) -> Instance:
        """Renames the directory; the process with its control connection is the returned Instance's from now on.

        One rename: whoever is killed here leaves a process that is the old directory's or the new one's.
        """
        self.directory.rename(target)
        moved = Instance(target, f"machine {target.parent.name}", on_problem)
        moved._monitor, self._monitor = self._monitor, None
        if moved._monitor is not None:
            moved._monitor.on_problem = moved._report
        return moved

    def _bound_messages(self) -> None:
        """QEMU has few words, but a guest may find a way to make it say them over and over."""
        with contextlib.suppress(OSError):
            if (self.directory / command.LOG_FILE).stat().st_size > _MESSAGES_LIMIT_BYTES:
                os.truncate(self.directory / command.LOG_FILE, 0)
