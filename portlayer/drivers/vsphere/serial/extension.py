"""VMware's telnet option 232: its messages, who may send them, and their limits.

A message is a code and a body; what the body means depends on the code. Sequences and secrets of a vMotion are opaque
and follow each other without anything between, so that whoever did not make them cannot, and need not, part them.
Facts: see the package.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from enum import Enum, IntEnum, auto

from portlayer.drivers.vsphere.serial.telnet import RemoteProtocolError

SERVICE_SCHEME = "vch://"
_DIGITS = re.compile("[0-9a-fA-F]{32}")


class Role(Enum):
    """The two ends: the VM (its ESXi host) dials, the proxy (the concentrator) answers."""

    VM = auto()
    PROXY = auto()


class Code(IntEnum):
    """Messages."""

    KNOWN_SUBOPTIONS_1 = 0
    KNOWN_SUBOPTIONS_2 = 1
    UNKNOWN_SUBOPTION_RCVD_1 = 2
    UNKNOWN_SUBOPTION_RCVD_2 = 3
    VMOTION_BEGIN = 40
    VMOTION_GOAHEAD = 41
    VMOTION_NOTNOW = 43
    VMOTION_PEER = 44
    VMOTION_PEER_OK = 45
    VMOTION_COMPLETE = 46
    VMOTION_ABORT = 48
    DO_PROXY = 70
    WILL_PROXY = 71
    WONT_PROXY = 73
    VM_VC_UUID = 80
    GET_VM_VC_UUID = 81
    VM_NAME = 82
    GET_VM_NAME = 83
    VM_BIOS_UUID = 84
    GET_VM_BIOS_UUID = 85
    VM_LOCATION_UUID = 86
    GET_VM_LOCATION_UUID = 87


@dataclass(frozen=True, slots=True)
class _Rule:
    sender: Role
    shortest: int = 0
    longest: int = 0


_SEQUENCE = 64
_COOKIE = 256
_UUID = 64
# VM names have 80 characters, of up to four bytes, and some come escaped as %XX.
_NAME = 1024
_URI = 1024

_RULES = {
    Code.KNOWN_SUBOPTIONS_1: _Rule(Role.VM, 0, 256),
    Code.KNOWN_SUBOPTIONS_2: _Rule(Role.PROXY, 0, 256),
    Code.UNKNOWN_SUBOPTION_RCVD_1: _Rule(Role.VM, 1, 1),
    Code.UNKNOWN_SUBOPTION_RCVD_2: _Rule(Role.PROXY, 1, 1),
    Code.VMOTION_BEGIN: _Rule(Role.VM, 1, _SEQUENCE),
    Code.VMOTION_GOAHEAD: _Rule(Role.PROXY, 1, _COOKIE),
    Code.VMOTION_NOTNOW: _Rule(Role.PROXY, 1, _COOKIE),
    Code.VMOTION_PEER: _Rule(Role.VM, 1, _COOKIE),
    Code.VMOTION_PEER_OK: _Rule(Role.PROXY, 1, _COOKIE),
    # Documented with the sequence and, for ABORT, without; hosts are taken as they come.
    Code.VMOTION_COMPLETE: _Rule(Role.VM, 0, _COOKIE),
    Code.VMOTION_ABORT: _Rule(Role.VM, 0, _COOKIE),
    Code.DO_PROXY: _Rule(Role.VM, 1, 1 + _URI),
    Code.WILL_PROXY: _Rule(Role.PROXY),
    Code.WONT_PROXY: _Rule(Role.PROXY),
    Code.VM_VC_UUID: _Rule(Role.VM, 0, _UUID),
    Code.GET_VM_VC_UUID: _Rule(Role.PROXY),
    Code.VM_NAME: _Rule(Role.VM, 0, _NAME),
    Code.GET_VM_NAME: _Rule(Role.PROXY),
    Code.VM_BIOS_UUID: _Rule(Role.VM, 0, _UUID),
    Code.GET_VM_BIOS_UUID: _Rule(Role.PROXY),
    Code.VM_LOCATION_UUID: _Rule(Role.VM, 0, _UUID),
    Code.GET_VM_LOCATION_UUID: _Rule(Role.PROXY),
}


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the extension."""

    code: Code
    body: bytes = b""

    def encode(self) -> bytes:
        """As it stands in a sub-negotiation."""
        return bytes((self.code,)) + self.body

    def fault(self, sender: Role) -> str:
        """What is wrong with it, coming from that end; empty when nothing is."""
        rule = _RULES[self.code]
        if rule.sender is not sender:
            return f"{self.code.name} is not for the {sender.name.lower()} to send"
        if not rule.shortest <= len(self.body) <= rule.longest:
            return f"{self.code.name} with {len(self.body)} bytes"
        return ""


def decode(body: bytes, sender: Role) -> Message | int:
    """A sub-negotiation's body as a message; the bare code when nobody knows it.

    Raises RemoteProtocolError for what the sender must not say.
    """
    if not body:
        raise RemoteProtocolError("an empty message")
    try:
        code = Code(body[0])
    except ValueError:
        return body[0]
    message = Message(code, body[1:])
    if fault := message.fault(sender):
        raise RemoteProtocolError(fault)
    return message


def do_proxy(direction: str, service_uri: str) -> Message:
    """A VM's request: direction "C" (the VM is the client) or "S", and the port's serviceURI."""
    return Message(Code.DO_PROXY, (direction + service_uri).encode())


def service_uri(message: Message) -> str:
    """The serviceURI in a DO_PROXY. Raises RemoteProtocolError."""
    direction, uri = message.body[:1], message.body[1:]
    if direction not in (b"C", b"S"):
        raise RemoteProtocolError(f"DO_PROXY in direction {direction!r}")
    return uri.decode("utf-8", "replace")


def normal_uuid(text: str) -> str:
    """A UUID in its usual form of 36 characters, whether it comes so or as in .vmx files ("50 2c .. 1f-9d ..").

    Raises ValueError. Both forms have the bytes in the same order.
    """
    digits = text.strip().replace(" ", "").replace("-", "")
    if not _DIGITS.fullmatch(digits):
        raise ValueError(f"{text[:64]!r} is no UUID")
    return str(uuid.UUID(hex=digits))


def printable(body: bytes) -> str:
    """Text from a peer, for a log: bounded, without control characters."""
    return "".join(c if c.isprintable() else "?" for c in body[:128].decode("utf-8", "replace"))
