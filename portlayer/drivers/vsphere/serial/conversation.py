"""One end of a connection between an ESXi host and a concentrator, sans-IO; which end is an argument.

Two tables say what may come when, the same for both ends: a message that we want to send and that they forbid is a
LocalProtocolError, one that arrives a RemoteProtocolError. Everything else about a message (does the secret fit, is
the VM known) is for whoever uses this.

Being asked to carry the port:

    IDLE --DO_PROXY--> ASKED --WILL_PROXY--> CARRYING
                             `-WONT_PROXY--> REFUSED

A vMotion, seen by the connection of the source:

    SETTLED --BEGIN--> BEGUN --GOAHEAD--> LEAVING --ABORT--> SETTLED
                         `-----NOTNOW---> SETTLED

and by that of the destination:

    SETTLED --PEER--> ARRIVING --PEER_OK--> ARRIVED --COMPLETE--> SETTLED
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from portlayer.drivers.vsphere.serial import extension
from portlayer.drivers.vsphere.serial.extension import Code, Message, Role
from portlayer.drivers.vsphere.serial.telnet import (
    Data,
    LocalProtocolError,
    Negotiated,
    Option,
    RemoteProtocolError,
    Subnegotiation,
    Telnet,
)

# Messages of one connection's life: some ten, and three for each vMotion that is begun and comes to nothing.
MAX_MESSAGES: Final = 4096


class Proxying(Enum):
    """See the module's docstring."""

    IDLE = auto()
    ASKED = auto()
    CARRYING = auto()
    REFUSED = auto()


class Migrating(Enum):
    """See the module's docstring. AGAIN: a second BEGIN, which is answered before anything else."""

    SETTLED = auto()
    BEGUN = auto()
    LEAVING = auto()
    AGAIN = auto()
    ARRIVING = auto()
    ARRIVED = auto()


_PROXYING: Final = {
    (Proxying.IDLE, Code.DO_PROXY): Proxying.ASKED,
    (Proxying.ASKED, Code.WILL_PROXY): Proxying.CARRYING,
    (Proxying.ASKED, Code.WONT_PROXY): Proxying.REFUSED,
}
_MIGRATING: Final = {
    (Migrating.SETTLED, Code.VMOTION_BEGIN): Migrating.BEGUN,
    (Migrating.BEGUN, Code.VMOTION_GOAHEAD): Migrating.LEAVING,
    (Migrating.BEGUN, Code.VMOTION_NOTNOW): Migrating.SETTLED,
    (Migrating.BEGUN, Code.VMOTION_ABORT): Migrating.SETTLED,
    # After a NOTNOW: who has said BEGIN may say ABORT.
    (Migrating.SETTLED, Code.VMOTION_ABORT): Migrating.SETTLED,
    (Migrating.LEAVING, Code.VMOTION_ABORT): Migrating.SETTLED,
    (Migrating.LEAVING, Code.VMOTION_BEGIN): Migrating.AGAIN,
    (Migrating.AGAIN, Code.VMOTION_GOAHEAD): Migrating.LEAVING,
    (Migrating.AGAIN, Code.VMOTION_NOTNOW): Migrating.LEAVING,
    (Migrating.SETTLED, Code.VMOTION_PEER): Migrating.ARRIVING,
    (Migrating.ARRIVING, Code.VMOTION_PEER_OK): Migrating.ARRIVED,
    (Migrating.ARRIVED, Code.VMOTION_COMPLETE): Migrating.SETTLED,
}
_PROXYING_CODES: Final = frozenset(code for _, code in _PROXYING)
_MIGRATING_CODES: Final = frozenset(code for _, code in _MIGRATING)

# Options that each end uses itself. An ESXi host that asks for ECHO gets a yes that costs nothing (nothing is ever
# echoed, and a serial port has no local echo that would have to stop); we never want our own bytes back.
_OPTIONS: Final = {
    Role.PROXY: (Option.BINARY, Option.SUPPRESS_GO_AHEAD, Option.ECHO),
    Role.VM: (Option.BINARY, Option.SUPPRESS_GO_AHEAD, Option.VMWARE),
}
_OFFERED: Final = {Role.PROXY: _OPTIONS[Role.PROXY][:2], Role.VM: _OPTIONS[Role.VM]}


@dataclass(frozen=True, slots=True)
class Agreed:
    """Both ends speak VMware's extension from here on."""


Event = Data | Agreed | Message


class Conversation:
    """One end; the first bytes to send are there from the beginning."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.peer = Role.PROXY if role is Role.VM else Role.VM
        self.proxying = Proxying.IDLE
        self.migrating = Migrating.SETTLED
        self.is_agreed = False
        # What the peer said it knows; empty until it has.
        self.peer_knows: frozenset[int] = frozenset()
        self._messages = 0
        self._telnet = Telnet(local=_OPTIONS[role], remote=_OPTIONS[self.peer])
        for option in _OFFERED[role]:
            self._telnet.offer(option)
        for option in _OFFERED[self.peer]:
            self._telnet.ask(option)

    # --- sending

    def send(self, message: Message) -> None:
        """Sends a message. Raises LocalProtocolError when this end must not, or not now."""
        if not self.is_agreed:
            raise LocalProtocolError(f"{message.code.name} before the extension is agreed on")
        if fault := message.fault(self.role) or self._move(message.code):
            raise LocalProtocolError(fault)
        self._telnet.subnegotiate(Option.VMWARE, message.encode())

    def send_data(self, data: bytes | bytearray | memoryview) -> None:
        """Sends bytes of the serial port."""
        self._telnet.send_data(data)

    def data_to_send(self) -> bytes:
        """All that is to go out, in order; the caller now owns it."""
        return self._telnet.data_to_send()

    # --- receiving

    def receive_data(self, data: bytes) -> Iterator[Event]:
        """Takes what arrived, as the caller goes on. Raises RemoteProtocolError.

        One by one: what came together may make sense only when the first of it is answered before the next is taken,
        as with a BEGIN that an ABORT or another BEGIN has caught up with.
        """
        for event in self._telnet.receive_data(data):
            if isinstance(event, Subnegotiation):
                yield from self._receive_subnegotiation(event)
            elif isinstance(event, Negotiated):
                yield from self._receive_negotiated(event)
            else:
                yield event

    def _receive_negotiated(self, event: Negotiated) -> Iterator[Event]:
        if event.option != Option.VMWARE:
            # Whether bytes pass unharmed shows in the link layer's checks; a refused BINARY is not worth a dead VM.
            return
        if not event.enabled:
            raise RemoteProtocolError("the peer does not speak VMware's extension")
        self.is_agreed = True
        yield Agreed()

    def _receive_subnegotiation(self, event: Subnegotiation) -> Iterator[Event]:
        if event.option != Option.VMWARE or not self.is_agreed:
            raise RemoteProtocolError(f"a sub-negotiation of option {event.option}, which is not agreed on")
        self._messages += 1
        if self._messages > MAX_MESSAGES:
            raise RemoteProtocolError(f"more than {MAX_MESSAGES} messages")
        message = extension.decode(event.body, self.peer)
        if isinstance(message, int):
            self._deny(message)
            return
        if fault := self._move(message.code):
            raise RemoteProtocolError(fault)
        if message.code in (Code.KNOWN_SUBOPTIONS_1, Code.KNOWN_SUBOPTIONS_2):
            self.peer_knows = frozenset(message.body)
        yield message

    def _deny(self, code: int) -> None:
        unknown = Code.UNKNOWN_SUBOPTION_RCVD_1 if self.role is Role.VM else Code.UNKNOWN_SUBOPTION_RCVD_2
        self.send(Message(unknown, bytes((code,))))

    def _move(self, code: Code) -> str:
        """Moves the tables on; what is wrong with that, empty when nothing is."""
        if code in _PROXYING_CODES:
            proxying = _PROXYING.get((self.proxying, code))
            if proxying is None:
                return f"{code.name} is not allowed while {self.proxying.name}"
            self.proxying = proxying
        if code in _MIGRATING_CODES:
            migrating = _MIGRATING.get((self.migrating, code))
            if migrating is None:
                return f"{code.name} is not allowed while {self.migrating.name}"
            self.migrating = migrating
        return ""
