"""QEMUs that are no container's: a template on its way, and clones that wait. Implements Guest, Parent and Clone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

from portlayer.drivers.base import DiskNames, Shape, Template
from portlayer.drivers.qemu import command, files, process
from portlayer.drivers.qemu.disks import EmptyDisks
from portlayer.drivers.qemu.failures import os_errors
from portlayer.drivers.qemu.instance import Instance
from portlayer.drivers.qemu.qmp import DiskProblem

_PRACTICE_BYTES = 64 << 20
_PRACTICE_DISK = "practice.img"
# What is done in advance is done when nobody else wants the processor.
_STEPPED_BACK = 15
_STATE_SOCKET = "state.sock"
_DISKS = (command.IMAGE_NODE, command.WRITABLE_NODE)


class QemuGuest:
    """Implements Guest on an Instance that runs."""

    def __init__(self, instance: Instance, shape: Shape, empties: EmptyDisks) -> None:
        self._instance: Instance | None = instance
        self._shape = shape
        self._empties = empties

    @property
    def shape(self) -> Shape:
        return self._shape

    @property
    def disk_names(self) -> DiskNames:
        return command.DISK_NAMES

    async def open_channel(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await self._own.open_channel()

    async def wait_off(self) -> None:
        if self._instance is not None:
            await self._instance.wait_off()

    async def attach_practice_disks(self) -> None:
        writable = self._own.directory / _PRACTICE_DISK
        with os_errors("making disks to rehearse on"):
            image = await asyncio.to_thread(self._empties.practice_image)
            await asyncio.to_thread(self._empties.copy, _PRACTICE_BYTES, writable)
        await self.attach(image, writable)

    async def detach_practice_disks(self) -> None:
        await (await self._own.control()).detach(_DISKS)
        with os_errors("removing the disk of a rehearsal"):
            (self._own.directory / _PRACTICE_DISK).unlink(missing_ok=True)

    async def attach(self, image: Path, writable: Path) -> None:
        """Puts a container's disks in."""
        disks = {
            command.IMAGE_NODE: command.DiskFile(image, read_only=True),
            command.WRITABLE_NODE: command.DiskFile(writable, read_only=False),
        }
        await (await self._own.control()).attach(disks)

    async def discard(self) -> None:
        if self._instance is not None:
            await self._instance.remove()

    @property
    def _own(self) -> Instance:
        assert self._instance is not None, "it has become a container's"
        return self._instance


class QemuClone(QemuGuest):
    """Implements Clone."""

    def __init__(self, instance: Instance, shape: Shape, empties: EmptyDisks, phases_ns: Mapping[str, int]) -> None:
        super().__init__(instance, shape, empties)
        self._phases_ns = phases_ns

    @property
    def phases_ns(self) -> Mapping[str, int]:
        return self._phases_ns

    async def resume(self) -> None:
        if os.geteuid() == 0:  # others may step back, but never forward again
            await asyncio.to_thread(process.set_niceness, self._own.directory, _STEPPED_BACK)
        await (await self._own.control()).resume()

    async def suspend(self) -> None:
        await (await self._own.control()).pause()
        await asyncio.to_thread(process.set_niceness, self._own.directory, 0)

    async def private_bytes(self) -> int:
        return await asyncio.to_thread(process.private_bytes, self._own.directory)

    def become(self, directory: Path, on_problem: Callable[[DiskProblem], None]) -> Instance:
        """The process moves to a machine's directory; this is of no further use."""
        instance, self._instance = self._own.hand_over(directory, on_problem), None
        return instance


class QemuParent(QemuGuest):
    """Implements Parent; `keep` makes the template of what is in its directory and in its memory."""

    def __init__(
        self,
        instance: Instance,
        shape: Shape,
        empties: EmptyDisks,
        keep: Callable[[Path, int], Awaitable[Template]],
        drop_memory: Callable[[], None],
    ) -> None:
        super().__init__(instance, shape, empties)
        self._keep = keep
        self._drop_memory: Callable[[], None] | None = drop_memory

    async def discard(self) -> None:
        await super().discard()
        if self._drop_memory is not None:
            self._drop_memory()
            self._drop_memory = None

    async def freeze(self, made_in_ns: int) -> Template:
        began = time.monotonic_ns()
        monitor = await self._own.control()
        await monitor.pause()
        state = self._own.directory / "state"
        with os_errors("saving the state of a template"):
            async with _received(self._own.directory / _STATE_SOCKET, state):
                await monitor.save_state(_STATE_SOCKET)
            await monitor.quit()
            await self._own.wait_off()
            await self._own.release()
            template = await self._keep(state, made_in_ns + time.monotonic_ns() - began)
        self._drop_memory = None  # it is the template's now
        return template


@contextlib.asynccontextmanager
async def _received(socket_path: Path, target: Path) -> AsyncIterator[None]:
    """What one connection to the socket brings is in the file `target` when the context has ended."""
    whole: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read()
        writer.close()
        if not whole.done():
            whole.set_result(data)

    with files.listen(socket_path) as listener:
        server = await asyncio.start_unix_server(take, sock=listener)
        try:
            yield
            async with asyncio.timeout(30):
                data = await whole
        finally:
            server.close()
    await asyncio.to_thread(target.write_bytes, data)
