"""ttrpc's frames, as containerd and Kata speak them: a header of 10 bytes, then a message.

0  4  length of the message, big-endian
4  4  stream id; odd, chosen by the caller, never used twice in a session
8  1  type: 1 request, 2 response, 3 data
9  1  flags: 1 the sender sends no more, 2 the sender will send more, 4 no message
"""

from __future__ import annotations

import struct
from enum import IntEnum

from tether.wire.errors import RemoteProtocolError

HEADER = struct.Struct(">IIBB")
# Longest message. A link frame carries exactly one ttrpc frame, so no reassembly is needed.
MAX_MESSAGE = 256 * 1024 + 4096


class MessageType(IntEnum):
    """What a frame carries."""

    REQUEST = 1
    RESPONSE = 2
    DATA = 3


CLOSED = 0x1
OPEN = 0x2
NO_DATA = 0x4


def encode(stream_id: int, message_type: MessageType, message: bytes, flags: int = 0) -> bytes:
    """One frame."""
    return HEADER.pack(len(message), stream_id, message_type, flags) + message


def decode(frame: bytes) -> tuple[int, MessageType, int, bytes]:
    """Stream id, type, flags and message of a whole frame; RemoteProtocolError when it is malformed."""
    if len(frame) < HEADER.size:
        raise RemoteProtocolError("frame shorter than its header")
    length, stream_id, message_type, flags = HEADER.unpack_from(frame)
    if length != len(frame) - HEADER.size or length > MAX_MESSAGE:
        raise RemoteProtocolError("frame's length field does not fit")
    if message_type not in MessageType._value2member_map_:
        raise RemoteProtocolError(f"unknown frame type {message_type}")
    return stream_id, MessageType(message_type), flags, frame[HEADER.size :]
