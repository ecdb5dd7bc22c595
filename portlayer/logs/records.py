"""The records of a log file: a fixed header, then the bytes as the agent read them.

offset  size
0       4     length of the data, little-endian like all of these
4       1     stream, 1 stdout, 2 stderr
5       3     zero
8       4     run: which start of the container wrote it, from 1
12      8     time, nanoseconds since 1970
20      8     offset of the first byte in that run's output
28      ...   data
"""

from __future__ import annotations

import struct
from typing import NamedTuple

HEADER = struct.Struct("<IB3xIQQ")
MAX_DATA = 1 << 20


class Record(NamedTuple):
    """A piece of output."""

    stream: int
    run: int
    time_ns: int
    offset: int
    data: bytes


def encode(record: Record) -> bytes:
    """The bytes of a record."""
    return HEADER.pack(len(record.data), record.stream, record.run, record.time_ns, record.offset) + record.data


def decode(data: bytes) -> tuple[list[Record], int]:
    """The whole records at the beginning of `data`, and the position behind the last; stops at the first half one."""
    records = []
    position = 0
    while position + HEADER.size <= len(data):
        length, stream, run, time_ns, offset = HEADER.unpack_from(data, position)
        end = position + HEADER.size + length
        if length > MAX_DATA or end > len(data):
            break
        records.append(Record(stream, run, time_ns, offset, data[position + HEADER.size : end]))
        position = end
    return records, position
