"""A network serial port: dials out, tells who it is, joins the guest's serial line and the call.

As on ESXi what a guest writes while nobody is connected is lost, and a broken call is dialled again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, Self

from lab_hardware import NetworkPort

REDIAL_SECONDS = 1.0
_CHUNK_BYTES = 64 << 10
_log = logging.getLogger(__name__)


class Call(Protocol):
    """A port's connection to its proxy. Methods raise OSError; `vmotion` whatever says that it is refused."""

    def write(self, data: bytes) -> None: ...

    async def drain(self) -> None: ...

    async def read(self) -> bytes:
        """As soon as there is something; nothing when it has ended. May be cancelled without a loss."""

    async def vmotion(self) -> Self:
        """The same port on another host; what arrived before can still be read here."""

    async def close(self) -> None: ...


# Makes a call for a port; raises OSError when that fails.
Dial = Callable[[NetworkPort], Awaitable[Call]]


@dataclass
class Passage:
    """A port on its way to another host: its call there, and what the guest has not read yet."""

    port: NetworkPort | None
    call: Call | None
    unread: bytes


class PortLine:
    """One port of a VM that is powered on. `line` is the lab's end of the guest's serial line."""

    def __init__(self, line: socket.socket, dial: Dial) -> None:
        self._line = line
        self._dial = dial
        self._port: NetworkPort | None = None
        self._call: Call | None = None
        self._near: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._calling: asyncio.Task[None] | None = None

    async def open(self, arrived: Passage | None = None) -> None:
        """Reads what the guest writes from now on; goes on where it stood on another host."""
        reader, self._near = await asyncio.open_connection(sock=self._line)
        if arrived is not None and arrived.port is not None:
            self._near.write(arrived.unread)
            self._port = arrived.port
            self._call = arrived.call
            self._calling = asyncio.create_task(self._keep_connected(arrived.port, arrived.call))
        self._reading = asyncio.create_task(self._from_guest(reader))

    def connect(self, port: NetworkPort | None) -> None:
        """Dials out from now on, or not at all; no effect when that is so already."""
        if port == self._port:
            return
        self._port = port
        if self._calling is not None:
            self._calling.cancel()
            self._calling = None
        if port is not None:
            self._calling = asyncio.create_task(self._keep_connected(port))

    async def hold(self) -> None:
        """Brings the guest nothing more."""
        call, self._call = self._call, None
        await _ended(self._calling)
        self._call = call

    async def depart(self, unread: bytes) -> Passage:
        """After `hold`, and once the guest's end of the line is closed: moves the call. It is closed here then."""
        assert self._reading is not None
        await self._reading
        old, new = self._call, None
        if old is not None:
            try:
                new = await old.vmotion()
                while data := await old.read():
                    unread += data
            except Exception as error:  # the port dials anew over there, as after any loss
                _log.warning("a port did not come along: %s", error)
        await self.close()
        return Passage(self._port, new, unread)

    async def close(self) -> None:
        await _ended(self._reading)
        await _ended(self._calling)
        if self._call is not None:
            await _hang_up(self._call)
        if self._near is not None:
            self._near.close()

    async def _from_guest(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            if (call := self._call) is not None:
                with contextlib.suppress(OSError):
                    call.write(data)
                    await call.drain()

    async def _keep_connected(self, port: NetworkPort, call: Call | None = None) -> None:
        while True:
            try:
                self._call = call = call or await self._dial(port)
                await self._to_guest(call)
            except OSError as error:
                _log.info("%s: %s", port.proxy_uri, error)
            finally:
                # When the call is held it is not ours any more.
                if call is not None and self._call is call:
                    self._call = None
                    await _hang_up(call)
            call = None
            await asyncio.sleep(REDIAL_SECONDS)

    async def _to_guest(self, call: Call) -> None:
        assert self._near is not None
        while data := await call.read():
            self._near.write(data)
            await self._near.drain()


async def _hang_up(call: Call) -> None:
    with contextlib.suppress(OSError):
        await call.close()


async def _ended(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.wait([task])
