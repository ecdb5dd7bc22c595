"""Reading logs as `docker logs` does: by stream, time and number of lines, once or for as long as more comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from portlayer.logs.log import Log, Position
from portlayer.logs.records import Record, decode

_READ_BYTES = 4 << 20
# Pieces of one stream are joined up to this size.
_CHUNK_BYTES = 512 << 10


@dataclass(frozen=True)
class LogQuery:
    """What to read; times in nanoseconds since 1970, 0 for no limit; `tail` None for all lines."""

    streams: frozenset[int] = frozenset((1, 2))
    since_ns: int = 0
    until_ns: int = 0
    tail: int | None = None
    timestamps: bool = False


class Chunk(NamedTuple):
    """Output of one stream, 1 stdout or 2 stderr."""

    stream: int
    data: bytes


async def read(log: Log, query: LogQuery, *, follow_while: Callable[[], bool] | None = None) -> AsyncIterator[Chunk]:
    """The log's bytes; with `follow_while`, what is appended later too, until it says false (and nothing is left)."""
    first = log.files()
    position = Position(first[0] if first else log.end().file, 0)
    shaper = _Shaper(query)
    if query.tail is not None:
        shaper.skip_lines(await _count_lines(log, position, log.end(), query) - query.tail)
    while True:
        changed = log.changed
        more = follow_while is not None and follow_while()
        while True:
            records, following = await _records_at(log, position)
            for chunk in _joined(shaper.shape(records)):
                yield chunk
            if shaper.over:
                return
            if following is None:
                break
            position = following
        if not more or not await _appended(changed, query.until_ns):
            return


async def _records_at(log: Log, position: Position) -> tuple[list[Record], Position | None]:
    """Some records, and where the next ones are; None where no whole record is, and no other file follows (yet)."""
    data, following = await asyncio.to_thread(log.read, position, _READ_BYTES)
    records, size = decode(data)
    return records, Position(position.file, position.byte + size) if records else following


async def _appended(changed: asyncio.Event, until_ns: int) -> bool:
    """Waits for more; False once the time is up."""
    remaining = (until_ns - time.time_ns()) / 1e9 if until_ns else None
    try:
        async with asyncio.timeout(remaining):
            await changed.wait()
    except TimeoutError:
        return False
    return True


async def _count_lines(log: Log, position: Position, end: Position, query: LogQuery) -> int:
    """Number of lines that begin before `end` and fit the query."""
    counter = _Shaper(query)
    while position.file < end.file or position.byte < end.byte:
        records, following = await _records_at(log, position)
        for record in records:
            counter.count(record)
        if following is None:
            break
        position = following
    return counter.lines


@dataclass
class _Shaper:
    """Applies a query to records in order."""

    query: LogQuery
    over: bool = False
    lines: int = 0
    _skip: int = 0
    # By stream: whether the next byte begins a line, and whether the line under way is dropped.
    _fresh: dict[int, bool] = field(default_factory=lambda: {1: True, 2: True})
    _dropping: dict[int, bool] = field(default_factory=lambda: {1: False, 2: False})

    def skip_lines(self, number: int) -> None:
        """Drops so many lines from here on."""
        self._skip = max(0, number)
        self._fresh = {1: True, 2: True}

    def count(self, record: Record) -> None:
        """Adds the lines that begin in this record."""
        if not self._wanted(record):
            return
        begun = record.data.count(b"\n") + self._fresh[record.stream]
        self._fresh[record.stream] = record.data.endswith(b"\n")
        self.lines += begun - self._fresh[record.stream]

    def shape(self, records: list[Record]) -> Iterator[Chunk]:
        """What of these is to be shown."""
        for record in records:
            if self.query.until_ns and record.time_ns > self.query.until_ns:
                self.over = True
                return
            if not self._wanted(record):
                continue
            data = self._after_skipped(record) if self._skip or self._dropping[record.stream] else record.data
            if data and self.query.timestamps:
                data = self._stamped(record, data)
            if data:
                self._fresh[record.stream] = data.endswith(b"\n")
                yield Chunk(record.stream, data)

    def _wanted(self, record: Record) -> bool:
        query = self.query
        within = record.time_ns >= query.since_ns and not (query.until_ns and record.time_ns > query.until_ns)
        return within and record.stream in query.streams and bool(record.data)

    def _after_skipped(self, record: Record) -> bytes:
        """The part of a record that belongs to lines which are shown."""
        stream, data, position = record.stream, record.data, 0
        while position < len(data) and (self._dropping[stream] or self._skip):
            if not self._dropping[stream]:
                if not self._fresh[stream]:
                    break  # the rest of a line that is shown
                self._skip -= 1
                self._dropping[stream] = True
            newline = data.find(b"\n", position)
            position = newline + 1 if newline >= 0 else len(data)
            self._dropping[stream] = newline < 0
            self._fresh[stream] = newline >= 0
        return data[position:]

    def _stamped(self, record: Record, data: bytes) -> bytes:
        stamp = _rfc3339(record.time_ns)
        body, last = (data[:-1], b"\n") if data.endswith(b"\n") else (data, b"")
        first = stamp if self._fresh[record.stream] else b""
        return first + body.replace(b"\n", b"\n" + stamp) + last


def _joined(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Neighbours of one stream made one."""
    stream, size = 0, 0
    parts: list[bytes] = []
    for chunk in chunks:
        if parts and (chunk.stream != stream or size >= _CHUNK_BYTES):
            yield Chunk(stream, b"".join(parts))
            parts, size = [], 0
        stream = chunk.stream
        parts.append(chunk.data)
        size += len(chunk.data)
    if parts:
        yield Chunk(stream, b"".join(parts))


def _rfc3339(time_ns: int) -> bytes:
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode() + b".%09dZ " % nanoseconds
