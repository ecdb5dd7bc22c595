"""The user's end of a port: an asyncio transport, so that the user has StreamReader and StreamWriter as of a socket.

Flow control works both ways: a user that does not read makes the StreamReader pause this transport, a VM that does not
read makes the StreamWriter's `drain` wait. Which connection the bytes come from and go to is the port's affair, and may
change in between.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Protocol

# What a StreamReader takes in before it pauses is twice this.
_READ_LIMIT: Final = 128 * 1024


class Line(Protocol):
    """What carries the bytes."""

    def write(self, user: User, data: bytes) -> None:
        """Takes bytes for the VM, all of them."""

    def reading_changed(self, user: User) -> None:
        """The user's `is_reading` changed."""

    def left(self, user: User) -> None:
        """The user has closed its end."""

    @property
    def unsent_bytes(self) -> int:
        """Bytes taken and not yet with the kernel."""


class User(asyncio.Transport):
    """See the module's docstring. `reader` and `writer` are what the user gets."""

    def __init__(self, line: Line) -> None:
        super().__init__({})
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._line = line
        self._reading = True
        self._writable = True
        self._closing = False
        self.reader = asyncio.StreamReader(limit=_READ_LIMIT, loop=loop)
        self._protocol: asyncio.BaseProtocol = asyncio.StreamReaderProtocol(self.reader, loop=loop)
        self._protocol.connection_made(self)
        self.writer = asyncio.StreamWriter(self, self._protocol, self.reader, loop)

    # --- the port's side

    def feed(self, data: bytes) -> None:
        """Bytes from the VM."""
        if not self._closing and isinstance(self._protocol, asyncio.Protocol):
            self._protocol.data_received(data)

    def set_writable(self, writable: bool) -> None:
        """Whether `drain` lets the user go on."""
        if writable is self._writable or self._closing:
            return
        self._writable = writable
        if writable:
            self._protocol.resume_writing()
        else:
            self._protocol.pause_writing()

    def end(self) -> None:
        """The VM is gone: the reader sees the end once it has read what it was fed, the writer a lost connection."""
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._protocol.connection_lost, None)

    # --- asyncio.Transport

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self.end()
            self._line.left(self)

    def abort(self) -> None:
        self.close()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closing and data:
            self._line.write(self, bytes(data))

    def can_write_eof(self) -> bool:
        """A serial port has no half-close."""
        return False

    def get_write_buffer_size(self) -> int:
        return 0 if self._closing else self._line.unsent_bytes

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """No effect: the limits are those of the VM's connection."""

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        self._set_reading(False)

    def resume_reading(self) -> None:
        self._set_reading(True)

    def _set_reading(self, reading: bool) -> None:
        if reading is not self._reading:
            self._reading = reading
            if not self._closing:
                self._line.reading_changed(self)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default
