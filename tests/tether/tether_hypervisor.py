"""VMware's end of GuestRPC, written from the description alone: it reads requests and answers as it is told to."""

from __future__ import annotations

import socket
import struct


def frame(*fields: bytes) -> bytes:
    body = b"".join(fields)
    return struct.pack(">I", len(body)) + body


def number(field: int, value: int) -> bytes:
    """Type 1; the lower half of 64 bits comes first."""
    return struct.pack(">IIII", 1, field, value & 0xFFFF_FFFF, value >> 32)


def string(field: int, value: bytes) -> bytes:
    """Type 2."""
    return struct.pack(">III", 2, field, len(value)) + value


def reply(text: bytes) -> bytes:
    return frame(number(1, 1), string(2, text))


def read_command(connection: socket.socket) -> bytes:
    """The next request, which must be what the hypervisor expects to the byte."""
    (size,) = struct.unpack(">I", _read(connection, 4))
    body = _read(connection, size)
    prefix = number(1, 1)
    assert body.startswith(prefix)
    kind, field, length = struct.unpack_from(">III", body, len(prefix))
    assert (kind, field, length) == (2, 2, len(body) - len(prefix) - 12)
    return body[len(prefix) + 12 :]


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        assert more, "the agent hung up"
        data += more
    return data
