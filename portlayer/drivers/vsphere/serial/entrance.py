"""Where connections come in: counted from the first moment, TLS handshake included, until they belong to a VM."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from typing import Final

from portlayer.drivers.vsphere.serial.admission import Admissions
from portlayer.drivers.vsphere.serial.connection import HostConnection

_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# Wait after an accept that failed for want of anything, in seconds.
_RETRY_S: Final = 0.5

_log = logging.getLogger(__name__)


class Entrance:
    """Takes connections in.

    At most `max_unidentified` connections may belong to nobody: then the oldest goes, since an honest host needs a
    moment only, and of those the oldest from the address that has the most, so that one who floods us keeps none but
    itself out. `identify_s`: seconds that each of them has.
    """

    def __init__(
        self, admissions: Admissions, *, tls: ssl.SSLContext | None, identify_s: float, max_unidentified: int
    ) -> None:
        self.admissions = admissions
        self.tls = tls
        self.identify_s = identify_s
        self._max_unidentified = max_unidentified
        self._doors: set[_Door] = set()
        # By address, in the order they came: dictionaries keep it.
        self._unidentified: dict[str, dict[_Door, None]] = {}

    async def serve(self, listener: socket.socket) -> None:
        """Takes connections in until it is cancelled.

        An accept loop of our own: a server of asyncio's tells of a connection only when its TLS handshake is over.
        """
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listener)
            except OSError as error:
                _log.warning("the serial concentrator cannot accept a connection: %s", error)
                if error.errno in _EXHAUSTED:
                    # Whoever is not known yet gives way; when that does not help, time may.
                    self._shut_out_oldest()
                    await asyncio.sleep(_RETRY_S)
            else:
                _Door(self, sock, str(address[0]))

    async def close(self) -> None:
        """Ends all connections."""
        doors = list(self._doors)
        for door in doors:
            door.abort()
        for door in doors:
            await door.gone.wait()

    def entered(self, door: _Door) -> None:
        """A connection is there."""
        self._doors.add(door)
        self._unidentified.setdefault(door.address, {})[door] = None
        if sum(map(len, self._unidentified.values())) > self._max_unidentified:
            _log.warning("too many connections of no VM: the oldest of the address with the most is closed")
            self._shut_out_oldest()

    def _shut_out_oldest(self) -> None:
        if self._unidentified:
            most = max(self._unidentified.values(), key=len)
            oldest = next(iter(most))
            self.identified(oldest)
            oldest.abort()

    def identified(self, door: _Door) -> None:
        """A connection belongs to a VM."""
        doors = self._unidentified.get(door.address, {})
        doors.pop(door, None)
        if not doors:
            self._unidentified.pop(door.address, None)

    def left(self, door: _Door) -> None:
        """A connection is gone."""
        self.identified(door)
        self._doors.discard(door)


class _Door:
    """One connection from the first moment, and the one that is told of its end."""

    def __init__(self, entrance: Entrance, sock: socket.socket, address: str) -> None:
        self.gone = asyncio.Event()
        self.address = address
        self._entrance = entrance
        self._sock = sock
        self._connection = HostConnection(entrance.admissions, self, identify_s=entrance.identify_s)
        entrance.entered(self)
        self._task = asyncio.create_task(self._enter())
        self._task.add_done_callback(self._entered)

    def abort(self) -> None:
        """Cuts the connection off."""
        if self._task.done():
            self._connection.close()
        else:
            self._task.cancel()

    async def _enter(self) -> None:
        tls = self._entrance.tls
        timeout = self._entrance.identify_s if tls is not None else None
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: self._connection, self._sock, ssl=tls, ssl_handshake_timeout=timeout
        )

    def _entered(self, task: asyncio.Task[None]) -> None:
        """In, or not: also when the task was cancelled before it ran at all."""
        error = "cut off" if task.cancelled() else task.exception()
        if error is not None:
            _log.info("no TLS with a host that dials the serial concentrator: %s", error)
            self._sock.close()
            self._connection.connection_lost(None)

    # --- connection.Owner

    def identified(self, connection: HostConnection) -> None:
        """See connection.Owner."""
        self._entrance.identified(self)

    def closed(self, connection: HostConnection) -> None:
        """See connection.Owner."""
        self._entrance.left(self)
        self.gone.set()
