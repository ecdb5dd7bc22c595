"""One TCP connection from an ESXi host: who it speaks for, and then its bytes and its vMotion messages to the port.

A VM runs on while its host dials, so serial bytes may come before anything is agreed on: of firmware that prints, of an
agent that talks when its line is connected again. They are nobody's yet, and dropped. What is kept of strangers is
memory that anyone can take, and whoever reads the port begins a session of its own, for which nothing said before
counts (tether/wire/link.py finds its next frame in the middle of anything).

Nothing a host sends can hurt more than its own connection: what breaks the protocol ends it, with a line in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Final, Protocol, cast

from portlayer.drivers.vsphere.serial import extension
from portlayer.drivers.vsphere.serial.admission import Admissions
from portlayer.drivers.vsphere.serial.conversation import Agreed, Conversation, Event
from portlayer.drivers.vsphere.serial.extension import Code, Message, Role
from portlayer.drivers.vsphere.serial.port import Port
from portlayer.drivers.vsphere.serial.telnet import Data, RemoteProtocolError

_KNOWN: Final = bytes(sorted(Code))
# A host that vanished without a word: found out after some two minutes of silence.
_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))

# Serial bytes of one that has not said for whom it speaks. More than a VM says while its host introduces itself.
_MAX_UNCLAIMED: Final = 1 << 20

# A host that was refused has so long, in seconds, to take note before it is cut off.
_LINGER_S: Final = 5.0

_log = logging.getLogger(__name__)


class Owner(Protocol):
    """Who counts the connections."""

    def identified(self, connection: HostConnection) -> None:
        """It belongs to a VM from here on."""

    def closed(self, connection: HostConnection) -> None:
        """It has ended."""


class HostConnection(asyncio.Protocol):
    """See the module's docstring; carrier.Connection is what a port knows of it.

    `identify_s`: so long it may take to belong to a VM, seconds.
    """

    def __init__(self, admissions: Admissions, owner: Owner, *, identify_s: float) -> None:
        self.held = bytearray()
        self.is_blocked = False
        self._admissions = admissions
        self._owner = owner
        self._conversation = Conversation(Role.PROXY)
        self._transport: asyncio.Transport | None = None
        self._port: Port | None = None
        self._peer_name = "a host"
        self._vc_uuid: str | None = None
        self._expects_uuid = False
        self._uri: str | None = None
        self._unclaimed = 0
        self._patience = asyncio.get_running_loop().call_later(identify_s, self._run_out)

    def __str__(self) -> str:
        return f"{self._peer_name} (VM {self._port.vc_uuid})" if self._port is not None else self._peer_name

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass.
        self._transport = cast("asyncio.Transport", transport)
        address = transport.get_extra_info("peername")
        if isinstance(address, tuple):
            self._peer_name = f"host {address[0]}"
        keep_alive(transport)
        self._flush()

    def data_received(self, data: bytes) -> None:
        try:
            for event in self._conversation.receive_data(data):
                self._handle(event)
                if self._transport is None or self._transport.is_closing():
                    return
        except RemoteProtocolError as error:
            _log.warning("%s broke the serial concentrator's protocol: %s", self, error)
            self.close()
        else:
            self._flush()

    def pause_writing(self) -> None:
        self._set_blocked(True)

    def resume_writing(self) -> None:
        self._set_blocked(False)

    def connection_lost(self, error: Exception | None) -> None:
        _log.debug("%s has gone: %s", self, error or "closed")
        self._patience.cancel()
        self._transport = None
        if self._port is not None:
            self._port.lost(self)
        self._owner.closed(self)

    def _set_blocked(self, blocked: bool) -> None:
        self.is_blocked = blocked
        if self._port is not None:
            self._port.writing_changed()

    def _run_out(self) -> None:
        """The time to say who one is is over."""
        if self._port is not None:
            self._port.promote(self)
        else:
            _log.info("%s did not say in time for which VM it speaks", self)
            self.close()

    # --- carrier.Connection

    @property
    def unsent_bytes(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def send_data(self, data: bytes) -> None:
        self._conversation.send_data(data)
        self._flush()

    def send_go_ahead(self, cookie: bytes) -> None:
        self._send(Code.VMOTION_GOAHEAD, cookie)

    def send_not_now(self, sequence: bytes) -> None:
        self._send(Code.VMOTION_NOTNOW, sequence)

    def send_peer_ok(self, cookie: bytes) -> None:
        # Documented with the sequence alone; the concentrators in the field repeat all that PEER brought.
        self._send(Code.VMOTION_PEER_OK, cookie)

    def set_reading(self, reading: bool) -> None:
        if self._transport is not None and not self._transport.is_closing():
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def half_close(self) -> None:
        if self._transport is not None and self._transport.can_write_eof():
            with contextlib.suppress(OSError):
                self._transport.write_eof()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def belong(self) -> None:
        self._patience.cancel()
        self._owner.identified(self)

    def _send(self, code: Code, body: bytes = b"") -> None:
        self._conversation.send(Message(code, body))
        self._flush()

    def _flush(self) -> None:
        data = self._conversation.data_to_send()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    # --- messages

    def _handle(self, event: Event) -> None:
        if isinstance(event, Data):
            if self._port is not None:
                self._port.receive(self, event.data)
            else:
                self._unclaimed += len(event.data)
                if self._unclaimed > _MAX_UNCLAIMED:
                    raise RemoteProtocolError(f"more than {_MAX_UNCLAIMED} bytes of nobody's serial port")
        elif isinstance(event, Message):
            self._handlers().get(event.code, self._ignore)(event)
        else:
            assert isinstance(event, Agreed)

    def _handlers(self) -> dict[Code, Callable[[Message], None]]:
        return {
            Code.KNOWN_SUBOPTIONS_1: self._receive_known,
            Code.UNKNOWN_SUBOPTION_RCVD_1: self._receive_unknown,
            Code.VM_VC_UUID: self._receive_uuid,
            Code.VM_NAME: self._receive_name,
            Code.DO_PROXY: self._receive_do_proxy,
            Code.VMOTION_BEGIN: self._receive_begin,
            Code.VMOTION_PEER: self._receive_peer,
            Code.VMOTION_COMPLETE: self._receive_complete,
            Code.VMOTION_ABORT: self._receive_abort,
        }

    def _ignore(self, message: Message) -> None:
        _log.debug("%s says %s", self, message.code.name)

    def _receive_known(self, message: Message) -> None:
        self._send(Code.KNOWN_SUBOPTIONS_2, _KNOWN)
        knows = self._conversation.peer_knows
        self._expects_uuid = {Code.VM_VC_UUID, Code.GET_VM_VC_UUID} <= knows
        if self._expects_uuid and self._vc_uuid is None:
            self._send(Code.GET_VM_VC_UUID)
        if {Code.VM_NAME, Code.GET_VM_NAME} <= knows:
            self._send(Code.GET_VM_NAME)

    def _receive_unknown(self, message: Message) -> None:
        if message.body[0] == Code.GET_VM_VC_UUID:
            self._expects_uuid = False
            self._identify()

    def _receive_uuid(self, message: Message) -> None:
        try:
            vc_uuid = extension.normal_uuid(message.body.decode("ascii", "replace")) if message.body else None
        except ValueError as error:
            raise RemoteProtocolError(str(error)) from error
        known = self._port.vc_uuid if self._port is not None else self._vc_uuid
        if known is not None and vc_uuid != known:
            raise RemoteProtocolError(f"VM {known} calls itself {vc_uuid}")
        self._vc_uuid = vc_uuid
        self._expects_uuid = False
        self._identify()

    def _receive_name(self, message: Message) -> None:
        _log.debug("%s speaks for %r", self, extension.printable(message.body))

    def _receive_do_proxy(self, message: Message) -> None:
        self._uri = extension.service_uri(message)
        self._identify()

    def _identify(self) -> None:
        """Answers DO_PROXY once the UUID is told, or will not be."""
        if self._uri is None or self._expects_uuid:
            return
        uri, self._uri = self._uri, None
        port = self._admissions.check(uri, self._vc_uuid)
        if port is None or self._port not in (None, port):
            _log.warning("%s speaks for VM %s, which is not admitted by its token", self, self._vc_uuid or "(unnamed)")
            self._refuse(Code.WONT_PROXY)
            return
        self._send(Code.WILL_PROXY)
        if self._port is None:
            self._port = port
            port.serve(self)

    def _refuse(self, code: Code, body: bytes = b"") -> None:
        """Says so and hangs up; what it takes from the host until then goes nowhere."""
        self._send(code, body)
        self._patience.cancel()
        self._patience = asyncio.get_running_loop().call_later(_LINGER_S, self.close)
        if self._transport is not None:
            self._transport.close()

    # --- vMotion

    def _receive_begin(self, message: Message) -> None:
        if self._port is not None:
            self._port.begin(self, message.body)
        else:
            self.send_not_now(message.body)

    def _receive_peer(self, message: Message) -> None:
        port = self._admissions.migrations.find(message.body)
        if port is None or self._port not in (None, port) or self._vc_uuid not in (None, port.vc_uuid):
            _log.warning("%s presents a secret of no vMotion of VM %s", self, self._vc_uuid or "(unnamed)")
            # How to refuse a PEER is not documented; the message is at least one that every host has to know.
            self._refuse(Code.UNKNOWN_SUBOPTION_RCVD_2, bytes((message.code,)))
            return
        self._port = port
        port.accept_peer(self)

    def _receive_complete(self, message: Message) -> None:
        if self._port is not None:
            self._port.complete(self)

    def _receive_abort(self, message: Message) -> None:
        if self._port is not None:
            self._port.abort(self)


def keep_alive(transport: asyncio.BaseTransport) -> None:
    """Has the kernel notice when the other end is gone."""
    sock = transport.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
