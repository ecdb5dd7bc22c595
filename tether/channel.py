"""The line to the host: a Session joined to a descriptor that can be read and written without blocking."""

from __future__ import annotations

import os
from collections.abc import Callable

from tether.loop import EDGE, Loop
from tether.wire import Event, Role, Session, SessionOpened

_READ_SIZE = 128 * 1024
# Above this much waiting to be written, producers should hold back.
_COMFORTABLE = 256 * 1024


class Channel:
    """Reads and writes the descriptor; `on_event` hears the session's events, `on_room` that more may be sent."""

    def __init__(self, loop: Loop, on_event: Callable[[Event], None], on_room: Callable[[], None]) -> None:
        self.session = Session(Role.GUEST)
        self._loop = loop
        self._descriptor = -1
        self._on_event = on_event
        self._on_room = on_room
        self._pending = bytearray()

    def attach(self, descriptor: int) -> None:
        """Speaks over this descriptor from now on and closes the one before it; the host begins a new session there."""
        if self._descriptor >= 0:
            self._loop.forget(self._descriptor)
            os.close(self._descriptor)
            self._pending.clear()  # half a frame at best
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._loop.watch(descriptor, self._ready, EDGE)
        self.flush()

    def begin_anew(self) -> None:
        """Forgets the session and announces itself on the same line: in a clone it was another VM's."""
        self.session = Session(Role.GUEST)
        self._pending.clear()
        self.flush()

    @property
    def has_room(self) -> bool:
        """Whether the host takes what is sent to it quickly enough for more."""
        return self.session.is_open and len(self._pending) < _COMFORTABLE

    def flush(self) -> None:
        """Writes as much as goes."""
        self._pending += self.session.data_to_send()
        while self._pending:
            try:
                written = os.write(self._descriptor, self._pending)
            except BlockingIOError:
                return
            except OSError:
                return  # the host's end is closed; it will connect again
            del self._pending[:written]

    def _ready(self) -> None:
        while data := self._read():
            for event in self.session.receive_data(data):
                if isinstance(event, SessionOpened):
                    self._pending.clear()  # half a frame of a session that nobody knows any more
                self._on_event(event)
            self.flush()
        self.flush()
        if self.has_room:
            self._on_room()

    def _read(self) -> bytes:
        try:
            return os.read(self._descriptor, _READ_SIZE)
        except OSError:
            return b""
