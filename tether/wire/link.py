"""The link layer: checked frames on a byte stream that knows no connections.

A serial line has no beginning and no end: either side may restart at any moment, leaving half a frame behind, and bytes
may be lost or invented around it. So a frame begins with a marker that can stand nowhere else: the byte F5 inside a
frame is always followed by 00 (and the 00 is taken out again). A reader in any state finds the next frame by looking
for the marker alone, and a half frame ends where the next marker begins. Nothing is repaired here: damage is reported,
and the session above ends with it. Layout and failures: docs/tether-protocol.md.

    0   4  marker F5 'v' 'c' 'h'
    4   4  length of the escaped body, 7 bits to a byte, most significant first
    8   n  body, escaped: header (kind, sequence number, session), payload, CRC-32 of both
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

MARKER = b"\xf5vch"
_LENGTH_SIZE = 4
_HEADER = struct.Struct(">BHQ")
_CRC = struct.Struct(">I")
MAX_PAYLOAD = 320 * 1024
# Escaping at worst doubles a body.
_MAX_BODY = 2 * (_HEADER.size + MAX_PAYLOAD + _CRC.size)


class Kind(IntEnum):
    """Kinds of frames."""

    LISTENING = 1  # guest: I am here and in no session
    HELLO = 2  # host: begin this session
    HELLO_ACK = 3  # guest: begun
    DATA = 4
    LOST = 5  # either: this session is broken


@dataclass(frozen=True, slots=True)
class Frame:
    """A checked frame. `sequence` counts DATA frames of the session in this direction, modulo 65536."""

    kind: Kind
    session: int
    sequence: int = 0
    payload: bytes = b""


class Damage:
    """Stands among the frames where bytes were that made no sound frame."""


DAMAGE = Damage()


def encode(frame: Frame) -> bytes:
    """The frame as it goes on the line."""
    header = _HEADER.pack(frame.kind, frame.sequence & 0xFFFF, frame.session)
    check = _CRC.pack(zlib.crc32(frame.payload, zlib.crc32(header)))
    # Escaped piece by piece: what is joined is copied but once.
    pieces = [piece.replace(b"\xf5", b"\xf5\x00") for piece in (header, frame.payload, check)]
    size = sum(map(len, pieces))
    return b"".join((MARKER, bytes((size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127)), *pieces))


def _decode_body(escaped: bytes) -> Frame | Damage:
    body = escaped.replace(b"\xf5\x00", b"\xf5")
    if len(body) < _HEADER.size + _CRC.size:
        return DAMAGE
    end = len(body) - _CRC.size
    with memoryview(body) as view:
        if zlib.crc32(view[:end]) != _CRC.unpack_from(body, end)[0]:
            return DAMAGE
        kind, sequence, session = _HEADER.unpack_from(body)
        if kind not in Kind._value2member_map_:
            return DAMAGE
        return Frame(Kind(kind), session, sequence, bytes(view[_HEADER.size : end]))


class Decoder:
    """Bytes in, frames out.

    Holds at most one incomplete frame (bounded by its largest size) between calls. One DAMAGE stands for any run of
    bytes that is no frame.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._damaged = False
        # Bytes behind the marker at the buffer's start that are known to hold no further marker.
        self._scanned = 0

    def receive(self, data: bytes | bytearray | memoryview) -> list[Frame | Damage]:
        """Takes bytes as they come, returns what is complete now."""
        self._buffer += data
        found: list[Frame | Damage] = []
        while self._to_marker(found):
            end = self._frame_end()
            if end is None:
                break
            if end == 0:
                self._skip(len(MARKER), found)
                continue
            item = _decode_body(bytes(self._buffer[len(MARKER) + _LENGTH_SIZE : end]))
            if isinstance(item, Damage):
                # Not to `end`: the last bytes may be the first of the next marker, the rest of which is yet to come.
                self._skip(len(MARKER), found)
            else:
                self._drop(end)
                self._damaged = False
                found.append(item)
        return found

    def _to_marker(self, found: list[Frame | Damage]) -> bool:
        """Drops what stands before the next marker; False when there is none yet."""
        if self._buffer.startswith(MARKER):
            return True
        position = self._buffer.find(MARKER)
        if position < 0:
            position = len(self._buffer) - self._partial_marker()
        if position:
            self._skip(position, found)
        return self._buffer.startswith(MARKER)

    def _partial_marker(self) -> int:
        """How many bytes at the buffer's end may be the beginning of a marker."""
        for size in range(len(MARKER) - 1, 0, -1):
            if self._buffer.endswith(MARKER[:size]):
                return size
        return 0

    def _frame_end(self) -> int | None:
        """End of the frame at the buffer's start; 0 when it is none; None while it is incomplete."""
        start = len(MARKER) + _LENGTH_SIZE
        if len(self._buffer) < start:
            return 0 if self._interrupted(len(self._buffer)) else None
        digits = self._buffer[len(MARKER) : start]
        size = digits[0] << 21 | digits[1] << 14 | digits[2] << 7 | digits[3]
        if max(digits) > 127 or size > _MAX_BODY:
            return 0
        end = start + size
        if self._interrupted(end):
            return 0
        return end if len(self._buffer) >= end else None

    def _interrupted(self, end: int) -> bool:
        """Whether another marker begins before `end`: then the first was of a frame that never got finished."""
        start = max(len(MARKER), self._scanned)
        position = self._buffer.find(MARKER, start, end + len(MARKER) - 1)
        self._scanned = max(len(MARKER), min(len(self._buffer), end) - len(MARKER) + 1)
        return 0 <= position < end

    def _skip(self, count: int, found: list[Frame | Damage]) -> None:
        self._drop(count)
        if not self._damaged:
            self._damaged = True
            found.append(DAMAGE)

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self._scanned = 0
