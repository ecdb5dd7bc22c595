"""Where connections come in: counted from the first moment, TLS handshake included, until they belong to a VM."""

from __future__ import annotations

import asyncio
import logging
import ssl

from portlayer.drivers.vsphere.serial.admission import Admissions
from portlayer.drivers.vsphere.serial.connection import HostConnection

_log = logging.getLogger(__name__)


class Entrance:
    """Makes the protocols of a server.

    At most `max_unidentified` connections may belong to nobody: then the oldest goes, since an honest host needs a
    moment only. `identify_s`: seconds that each of them has.
    """

    def __init__(
        self, admissions: Admissions, *, tls: ssl.SSLContext | None, identify_s: float, max_unidentified: int
    ) -> None:
        self.admissions = admissions
        self.tls = tls
        self.identify_s = identify_s
        self._max_unidentified = max_unidentified
        self._doors: set[_Door] = set()
        # In the order they came: dictionaries keep it.
        self._unidentified: dict[_Door, None] = {}

    def admit(self) -> asyncio.Protocol:
        """The protocol of a new connection."""
        return _Door(self)

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
        self._unidentified[door] = None
        if len(self._unidentified) > self._max_unidentified:
            oldest = next(iter(self._unidentified))
            _log.warning("too many connections of no VM: the oldest is closed")
            self.identified(oldest)
            oldest.abort()

    def identified(self, door: _Door) -> None:
        """A connection belongs to a VM."""
        self._unidentified.pop(door, None)

    def left(self, door: _Door) -> None:
        """A connection is gone."""
        self.identified(door)
        self._doors.discard(door)


class _Door(asyncio.Protocol):
    """One connection until its HostConnection takes over, and then the one that is told of its end."""

    def __init__(self, entrance: Entrance) -> None:
        self.gone = asyncio.Event()
        self._entrance = entrance
        self._raw: asyncio.Transport | None = None
        self._connection: HostConnection | None = None
        # What came right behind the TLS handshake.
        self._early = bytearray()
        self._handshake: asyncio.Task[None] | None = None

    def abort(self) -> None:
        """Cuts the connection off."""
        if self._raw is not None:
            self._raw.abort()

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._raw = transport
        self._entrance.entered(self)
        if self._entrance.tls is None:
            self._hand_over(transport)
        else:
            transport.pause_reading()
            self._handshake = asyncio.create_task(self._shake_hands(transport, self._entrance.tls))

    def data_received(self, data: bytes) -> None:
        self._early += data

    def connection_lost(self, error: Exception | None) -> None:
        self._leave()

    # --- connection.Owner

    def identified(self, connection: HostConnection) -> None:
        """See connection.Owner."""
        self._entrance.identified(self)

    def closed(self, connection: HostConnection) -> None:
        """See connection.Owner."""
        self._leave()

    async def _shake_hands(self, transport: asyncio.Transport, tls: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        try:
            secure = await loop.start_tls(
                transport, self, tls, server_side=True, ssl_handshake_timeout=self._entrance.identify_s
            )
        except OSError as error:
            _log.info("no TLS with a host that dials the serial concentrator: %s", error)
            secure = None
        if secure is None or secure.is_closing():
            transport.abort()
            self._leave()
        else:
            self._hand_over(secure)

    def _hand_over(self, transport: asyncio.Transport) -> None:
        self._connection = HostConnection(self._entrance.admissions, self, identify_s=self._entrance.identify_s)
        transport.set_protocol(self._connection)
        self._connection.connection_made(transport)
        if self._early:
            self._connection.data_received(bytes(self._early))
            self._early.clear()

    def _leave(self) -> None:
        self._entrance.left(self)
        self.gone.set()
