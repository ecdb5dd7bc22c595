"""Telnet (RFC 854, 855, 856, 858) as far as serial ports need it, sans-IO: bytes in, events out.

Either end may be had; which options an end uses and wants is an argument. Data is eight-bit clean: escaped, never
interpreted. A sub-negotiation is handed on as it is, for extension.py to read. Answers to option requests follow
RFC 1143's rule, which ends every loop: only a change of state is answered.

What a peer can make this end keep or send is bounded: a sub-negotiation's length and the number of option requests.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum

# Longest sub-negotiation, unescaped and without its option: the longest message of the extension is a URI.
MAX_SUBNEGOTIATION = 2048
# Option requests of one connection's life. A handful are honest; each is answered, so a flood would fill our memory.
MAX_REQUESTS = 256


class Option(IntEnum):
    """Options known here."""

    BINARY = 0
    ECHO = 1
    SUPPRESS_GO_AHEAD = 3
    VMWARE = 232


class _Command(IntEnum):
    SE = 240
    FIRST_PLAIN, LAST_PLAIN = 241, 249  # NOP, data mark, break ... go-ahead: none means anything for a serial port
    SB = 250
    WILL = 251
    WONT = 252
    DO = 253
    DONT = 254
    IAC = 255


_IAC = b"\xff"
_IAC_IAC = b"\xff\xff"


class TelnetError(Exception):
    """Root of what can be wrong with a conversation."""


class LocalProtocolError(TelnetError):
    """This end wanted something that cannot be said now: a bug here."""


class RemoteProtocolError(TelnetError):
    """The peer said what cannot be said, or too much of it. The connection is of no further use."""


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of the serial port, unescaped."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Negotiated:
    """An option was switched; `local`: for what this end sends."""

    option: int
    local: bool
    enabled: bool


@dataclass(frozen=True, slots=True)
class Subnegotiation:
    """Parameters of an option, unescaped."""

    option: int
    body: bytes


Event = Data | Negotiated | Subnegotiation


class _Side:
    """The options in one direction: which we accept, which are on, which we asked for and have no answer to."""

    def __init__(self, accepted: Collection[int]) -> None:
        self.accepted = frozenset(accepted)
        self.enabled: set[int] = set()
        self.asked: set[int] = set()


class Telnet:
    """One end. `local` are options this end is willing to use, `remote` those the peer may."""

    def __init__(self, *, local: Collection[int], remote: Collection[int]) -> None:
        self._local = _Side(local)
        self._remote = _Side(remote)
        self._pending = b""
        self._output: list[bytes] = []
        self._requests = 0

    def is_enabled(self, option: int, *, local: bool) -> bool:
        """Whether an option is on."""
        return option in (self._local if local else self._remote).enabled

    # --- sending

    def offer(self, option: int) -> None:
        """Asks to use an option at this end."""
        self._ask(self._local, option, _Command.WILL)

    def ask(self, option: int) -> None:
        """Asks the peer to use an option."""
        self._ask(self._remote, option, _Command.DO)

    def send_data(self, data: bytes | bytearray | memoryview) -> None:
        """Sends bytes of the serial port."""
        self._output.append(bytes(data).replace(_IAC, _IAC_IAC))

    def subnegotiate(self, option: int, body: bytes) -> None:
        """Sends parameters of an option."""
        if len(body) > MAX_SUBNEGOTIATION:
            raise LocalProtocolError(f"a sub-negotiation of {len(body)} bytes is longer than {MAX_SUBNEGOTIATION}")
        escaped = bytes((option, *body)).replace(_IAC, _IAC_IAC)
        self._output.append(bytes((_Command.IAC, _Command.SB)) + escaped + bytes((_Command.IAC, _Command.SE)))

    def data_to_send(self) -> bytes:
        """All that is to go out, in order; the caller now owns it."""
        data = b"".join(self._output)
        self._output.clear()
        return data

    # --- receiving

    def receive_data(self, data: bytes) -> list[Event]:
        """Takes what arrived; raises RemoteProtocolError, and what came with the violation is not told."""
        buffer = self._pending + data if self._pending else data
        events: list[Event] = []
        position = 0
        while position < len(buffer):
            end = _data_end(buffer, position)
            if end > position:
                events.append(Data(buffer[position:end].replace(_IAC_IAC, _IAC)))
                position = end
            used = self._receive_command(buffer, position, events) if position < len(buffer) else 0
            if not used:
                break
            position += used
        self._pending = buffer[position:]
        return events

    def _receive_command(self, buffer: bytes, start: int, events: list[Event]) -> int:
        """The command that begins at `start`; returns its length, 0 while it is incomplete."""
        if len(buffer) < start + 2:
            return 0
        command = buffer[start + 1]
        if _Command.FIRST_PLAIN <= command <= _Command.LAST_PLAIN:
            return 2
        if command == _Command.SB:
            return self._receive_subnegotiation(buffer, start, events)
        if command < _Command.SB:
            raise RemoteProtocolError(f"telnet command {command} means nothing here")
        if len(buffer) < start + 3:
            return 0
        self._requests += 1
        if self._requests > MAX_REQUESTS:
            raise RemoteProtocolError(f"more than {MAX_REQUESTS} option requests")
        self._receive_request(_Command(command), buffer[start + 2], events)
        return 3

    @staticmethod
    def _receive_subnegotiation(buffer: bytes, start: int, events: list[Event]) -> int:
        end = _data_end(buffer, start + 2)
        if end - start > 2 * MAX_SUBNEGOTIATION + 4:
            raise RemoteProtocolError("a sub-negotiation without end")
        if len(buffer) < end + 2:
            return 0
        if buffer[end + 1] != _Command.SE:
            raise RemoteProtocolError("a telnet command within a sub-negotiation")
        body = buffer[start + 2 : end].replace(_IAC_IAC, _IAC)
        if not body:
            raise RemoteProtocolError("a sub-negotiation of no option")
        if len(body) > MAX_SUBNEGOTIATION + 1:
            raise RemoteProtocolError(f"a sub-negotiation of {len(body)} bytes")
        events.append(Subnegotiation(body[0], body[1:]))
        return end + 2 - start

    # --- options

    def _ask(self, side: _Side, option: int, command: _Command) -> None:
        if option not in side.accepted:
            raise LocalProtocolError(f"option {option} is not among those of this end")
        if option not in side.enabled and option not in side.asked:
            side.asked.add(option)
            self._request(command, option)

    def _receive_request(self, command: _Command, option: int, events: list[Event]) -> None:
        local = command in (_Command.DO, _Command.DONT)
        side, agree, refuse = (
            (self._local, _Command.WILL, _Command.WONT) if local else (self._remote, _Command.DO, _Command.DONT)
        )
        if command in (_Command.DO, _Command.WILL):
            if option not in side.accepted:
                self._request(refuse, option)
            elif option not in side.enabled:
                side.enabled.add(option)
                if option not in side.asked:
                    self._request(agree, option)
                events.append(Negotiated(option, local, True))
        else:
            if option in side.enabled:
                self._request(refuse, option)
            if option in side.enabled or option in side.asked:
                side.enabled.discard(option)
                events.append(Negotiated(option, local, False))
        side.asked.discard(option)

    def _request(self, command: _Command, option: int) -> None:
        self._output.append(bytes((_Command.IAC, command, option)))


def _data_end(buffer: bytes, position: int) -> int:
    """Where plain bytes and doubled IACs end: at a command's IAC, or one that is the buffer's last, or the end."""
    while True:
        position = buffer.find(_IAC, position)
        if position < 0:
            return len(buffer)
        if buffer[position + 1 : position + 2] != _IAC:
            return position
        position += 2
