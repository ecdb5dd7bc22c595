"""One VM's serial port: which of its connections speaks now, and the one user who listens.

Two connections matter: the `inbound` one, whose bytes the user gets, and the `outbound` one, to which the user's bytes
go. Settled, they are the same. A vMotion parts them:

    source says BEGIN       GOAHEAD at once; no outbound: the user's bytes are held back (and soon the user, by `drain`)
    destination says PEER   accepted; the source's bytes still reach the user, the destination's are held back
    it says COMPLETE        outbound is the destination: what was held back goes there first. Inbound is the source
                            until it has ended or was silent for `drain_s`, for its last bytes may be on their way; only
                            then come the destination's. Nothing overtakes, nothing is said twice.
    source says ABORT       outbound is the source again; the destination is sent away

BEGIN is the last thing that a VM's host says before it stops the VM. When GOAHEAD comes too late for it, the VM goes on
and nobody says ABORT (VMware, "vMotion sequence diagram" in github.com/vmware/vspc): what the source says after BEGIN
shows it, unless a destination comes within `drain_s` and these were bytes on their way.

Failures on the way. The source ends before any PEER: the destination may still come, until `vmotion_s` is over. It ends
after the PEER: the destination is heard from then on, and spoken to once it says COMPLETE. The destination ends before
COMPLETE: the source goes on, another destination may come with the same cookie. Nobody comes within `vmotion_s`: the
user's bytes go to the source again, since that is where the VM runs; a late destination is still welcome. A second
BEGIN voids the first, unless a destination was accepted: NOTNOW.

BEGIN stands in line behind the VM's bytes, and the host gives an answer 5 seconds: a user has to keep reading, else its
VM cannot be moved (and stays where it is, unharmed).

A VM that dials in anew without a vMotion (its host lost the network, HA started it elsewhere) replaces its older
connection, and the user's stream ends. During a vMotion such a connection may be the destination that has yet to say
PEER, so it waits; what shows that it is no destination is serial data, or silence beyond the time to identify oneself.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from portlayer.drivers.vsphere.serial.carrier import Connection
from portlayer.drivers.vsphere.serial.migration import Migrations
from portlayer.drivers.vsphere.serial.stream import User
from portlayer.errors import DriverError

# Bytes of a user that are held back before `drain` makes it wait.
_HELD_FROM_USER: Final = 64 * 1024
# Bytes of a destination that are held back. Before COMPLETE it has nothing to say: with so many the VM evidently runs.
_HELD_FROM_VM: Final = 256 * 1024

_log = logging.getLogger(__name__)


class Port:
    """See the module's docstring. Times in seconds."""

    def __init__(self, vc_uuid: str, migrations: Migrations[Port], *, vmotion_s: float, drain_s: float) -> None:
        self.vc_uuid = vc_uuid
        self.connected = asyncio.Event()
        self.disconnected = asyncio.Event()
        self.disconnected.set()
        self._migrations = migrations
        self._vmotion_s = vmotion_s
        self._drain_s = drain_s
        self._user: User | None = None
        self._held = bytearray()
        self._inbound: Connection | None = None
        self._outbound: Connection | None = None
        # The vMotion under way: its cookie, its accepted destination, connections that may become one.
        self._cookie: bytes | None = None
        self._peer: Connection | None = None
        self._candidates: list[Connection] = []
        self._deadline: asyncio.TimerHandle | None = None
        self._overdue = False
        # After COMPLETE: when the source counts as silent.
        self._drain: asyncio.TimerHandle | None = None
        self._source_spoke = False
        self._is_dismissed = False

    # --- the user

    async def wait_connected(self) -> None:
        """Returns when the VM has dialled in, at once if it has. Raises DriverError when the port is dismissed."""
        while not self.is_connected:
            if self._is_dismissed:
                raise DriverError(f"VM {self.vc_uuid} may not use the serial concentrator any more")
            await self.connected.wait()

    @property
    def is_connected(self) -> bool:
        """Whether the VM's port is carried now; also in the middle of a vMotion."""
        return not self.disconnected.is_set()

    def attach(self) -> User:
        """Makes a new user, in the place of the one before."""
        self._leave_user()
        self._user = User(self)
        self._refresh()
        return self._user

    def write(self, user: User, data: bytes) -> None:
        """See stream.Line."""
        if user is not self._user:
            return
        if self._outbound is not None:
            self._outbound.send_data(data)
        else:
            self._held += data
        self._refresh()

    def reading_changed(self, user: User) -> None:
        """See stream.Line."""
        if user is self._user:
            self._refresh()

    def left(self, user: User) -> None:
        """See stream.Line."""
        if user is self._user:
            self._leave_user()
            self._refresh()

    @property
    def unsent_bytes(self) -> int:
        """See stream.Line."""
        return len(self._held) + (self._outbound.unsent_bytes if self._outbound is not None else 0)

    def _leave_user(self) -> None:
        if self._user is not None:
            self._user.end()
        self._user = None
        # Bytes for a VM from a user that is gone: half a frame at most, as on any line that breaks.
        self._held.clear()

    # --- connections

    def serve(self, connection: Connection) -> None:
        """The VM has dialled in. It is made to wait when it may be a vMotion's destination that has to say so yet."""
        if self._cookie is not None:
            self._candidates.append(connection)
            return
        if self.is_connected:
            _log.info("VM %s has dialled in anew", self.vc_uuid)
            self._disconnect()
        self._inbound = self._outbound = connection
        self.disconnected.clear()
        self.connected.set()
        connection.belong()
        self._refresh()

    def promote(self, connection: Connection) -> None:
        """A connection that `serve` made wait is no destination: the VM was started anew."""
        if connection in self._candidates:
            self._candidates.remove(connection)
            _log.info("VM %s was started anew during a vMotion", self.vc_uuid)
            self._disconnect()
            self.serve(connection)

    def receive(self, connection: Connection, data: bytes) -> None:
        """Serial bytes from one of the VM's connections."""
        if connection is self._inbound:
            self._source_spoke = True
            if self._outbound is None and self._peer is None:
                self._await_destination(self._drain_s)
            if self._user is not None:
                self._user.feed(data)
        elif connection is self._peer or connection is self._outbound:
            connection.held += data
            if connection is self._peer and len(connection.held) > _HELD_FROM_VM:
                self.complete(connection)
            self._refresh()
        elif connection in self._candidates:
            self.promote(connection)
            self.receive(connection, data)

    def lost(self, connection: Connection) -> None:
        """A connection has ended, by whichever side."""
        if connection in self._candidates:
            self._candidates.remove(connection)
        elif connection is self._outbound and connection is not self._inbound:
            # The destination, with the source not quite heard out.
            self._hear_out()
            self._disconnect()
        elif connection is self._inbound and self._drain is not None:
            self._hear_out()
        elif connection in (self._inbound, self._peer):
            self._lose_one(connection)
        self._refresh()

    def writing_changed(self) -> None:
        """A connection's `is_blocked` changed."""
        self._refresh()

    def dismiss(self) -> None:
        """The VM is not to be carried any more."""
        self._is_dismissed = True
        self._disconnect()
        self.connected.set()

    def _lose_one(self, connection: Connection) -> None:
        """Source or destination of a vMotion that is not complete, or just the VM's only connection."""
        was_peer = connection is self._peer
        if was_peer:
            self._peer = None
        if connection is self._inbound:
            self._inbound = self._outbound = None
            if self._peer is not None:
                self._hear(self._peer)
            elif self._deadline is not None:
                self._await_destination(self._vmotion_s, anew=True)
        if self._inbound is None and (was_peer or self._cookie is None or self._overdue):
            self._give_up()

    def _disconnect(self) -> None:
        """Nothing is left of the VM; the user's stream ends."""
        connections = {id(c): c for c in (self._inbound, self._outbound, self._peer, *self._candidates) if c}
        self._end_vmotion()
        self._inbound = self._outbound = None
        self._leave_user()
        if not self._is_dismissed:
            self.connected.clear()
        self.disconnected.set()
        for connection in connections.values():
            connection.close()

    # --- vMotion

    def begin(self, connection: Connection, sequence: bytes) -> None:
        """The source asks whether it may go."""
        if connection is not self._inbound or self._drain is not None or self._peer is not None:
            connection.send_not_now(sequence)
            return
        self._end_vmotion()
        _log.info("VM %s begins a vMotion", self.vc_uuid)
        self._outbound = None
        self._cookie = self._migrations.begin(sequence, self)
        self._await_destination(self._vmotion_s, anew=True)
        connection.send_go_ahead(self._cookie)
        self._refresh()

    def accept_peer(self, connection: Connection) -> None:
        """The destination has presented the cookie."""
        assert self._cookie is not None, "a void cookie leads to no port"
        if connection in self._candidates:
            self._candidates.remove(connection)
        former, self._peer = self._peer, connection
        connection.belong()
        if former is not None:
            # The same host, trying again: only it was told the cookie.
            self._forget(former)
        # It has not taken too long after all: bytes for the source would be lost.
        self._outbound = None
        self._overdue = False
        self._await_destination(self._vmotion_s, anew=True)
        connection.send_peer_ok(self._cookie)
        if self._inbound is None:
            self._hear(connection)
        self._refresh()

    def complete(self, connection: Connection) -> None:
        """The destination says that the VM runs there."""
        if connection is not self._peer:
            return
        _log.info("VM %s has completed a vMotion", self.vc_uuid)
        self._peer = None
        self._end_vmotion()
        self._speak_to(connection)
        if self._inbound is not connection and self._inbound is not None:
            self._watch_source()
            self._inbound.half_close()
        self._refresh()

    def abort(self, connection: Connection) -> None:
        """The source says that the VM stays."""
        if connection is self._inbound and self._drain is None:
            _log.info("VM %s has aborted a vMotion", self.vc_uuid)
            self._end_vmotion()
            self._speak_to(connection)
            self._refresh()

    def _end_vmotion(self) -> None:
        """Forgets the vMotion and sends away who came for it."""
        if self._cookie is not None:
            self._migrations.end(self._cookie)
        self._cookie = None
        self._overdue = False
        for timer in (self._deadline, self._drain):
            if timer is not None:
                timer.cancel()
        self._deadline = self._drain = None
        unwanted = [*self._candidates, *([self._peer] if self._peer is not None else [])]
        self._candidates = []
        self._peer = None
        for connection in unwanted:
            self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        connection.held.clear()
        connection.close()

    def _await_destination(self, seconds: float, *, anew: bool = False) -> None:
        """Gives the vMotion so long from now; unless `anew`, no longer than it had."""
        loop = asyncio.get_running_loop()
        if self._deadline is not None:
            if not anew and self._deadline.when() <= loop.time() + seconds:
                return
            self._deadline.cancel()
        self._deadline = loop.call_later(seconds, self._be_overdue)

    def _be_overdue(self) -> None:
        self._deadline = None
        self._overdue = True
        _log.warning("a vMotion of VM %s does not come to an end: it is taken to stay where it was", self.vc_uuid)
        if self._inbound is not None:
            self._speak_to(self._inbound)
        else:
            self._give_up()
        self._refresh()

    def _give_up(self) -> None:
        """Nobody of a vMotion is left, unless the VM has dialled in anew meanwhile."""
        if self._candidates:
            self.promote(self._candidates[-1])
        else:
            self._disconnect()

    def _watch_source(self) -> None:
        self._source_spoke = False
        self._drain = asyncio.get_running_loop().call_later(self._drain_s, self._stop_drain)

    def _stop_drain(self) -> None:
        """The source has not ended by itself. As long as it speaks, or the user is behind, there may be more of it."""
        if self._source_spoke or (self._user is not None and not self._user.is_reading()):
            self._watch_source()
        else:
            self._hear_out()

    def _hear_out(self) -> None:
        """The source has said all: now the destination, first what was held back of it."""
        source, destination = self._inbound, self._outbound
        if self._drain is not None:
            self._drain.cancel()
            self._drain = None
        if destination is not None:
            self._hear(destination)
        if source is not None:
            source.close()

    def _hear(self, connection: Connection) -> None:
        self._inbound = connection
        data = bytes(connection.held)
        connection.held.clear()
        if data and self._user is not None:
            self._user.feed(data)
        self._refresh()

    def _speak_to(self, connection: Connection) -> None:
        self._outbound = connection
        data = bytes(self._held)
        self._held.clear()
        if data:
            connection.send_data(data)

    # --- flow control

    def _refresh(self) -> None:
        """Stops and starts whoever is to wait now."""
        user, inbound, outbound = self._user, self._inbound, self._outbound
        if inbound is not None:
            inbound.set_reading(user is None or user.is_reading())
        if outbound is not None and outbound is not inbound:
            outbound.set_reading(len(outbound.held) <= _HELD_FROM_VM)
        if user is not None:
            user.set_writable(len(self._held) <= _HELD_FROM_USER if outbound is None else not outbound.is_blocked)
