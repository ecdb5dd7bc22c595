"""Sparse files in tar: the four ways in which GNU tar has written their maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

_MAX_SEGMENTS = 100_000
_OLD_HEADER_SLOTS = 4
_OLD_EXTENSION_SLOTS = 21
_SLOT = 24


class SparseError(ValueError):
    """The map makes no sense."""


class Segment(NamedTuple):
    """`length` bytes of content at `offset` of the file, which lie at `position` of the archive."""

    offset: int
    position: int
    length: int


@dataclass(frozen=True)
class SparseFile:
    """A file's name, its size with holes, and its data."""

    name: bytes
    size: int
    segments: tuple[Segment, ...]

    def placed(self, start: int, end: int) -> SparseFile:
        """With the data found one after the other from `start` of the archive, ending before `end`."""
        placed, position, offset = [], start, 0
        for segment in self.segments:
            if segment.offset < offset or segment.offset + segment.length > self.size:
                raise SparseError("its map is out of order")
            offset = segment.offset + segment.length
            if segment.length:
                placed.append(Segment(segment.offset, position, segment.length))
            position += segment.length
        if position > end:
            raise SparseError("its map speaks of more data than it has")
        return replace(self, segments=tuple(placed))


def old_gnu_sparse(header: bytes, name: bytes, next_block: Callable[[], bytes]) -> SparseFile:
    """GNU tar's own type S: slots in the header, and in the blocks behind it."""
    pairs = _slots(header[386:], _OLD_HEADER_SLOTS)
    extended = header[482]
    while extended:
        block = next_block()
        pairs += _slots(block, _OLD_EXTENSION_SLOTS)
        extended = block[504]
        _check_count(pairs)
    return SparseFile(name, _field(header[483:495]), _segments(pairs))


def pax_sparse(name: bytes, records: list[tuple[bytes, bytes]], next_block: Callable[[], bytes]) -> SparseFile | None:
    """pax versions 0.0, 0.1 and 1.0; None when the file is not sparse."""
    fields = {key.removeprefix(b"GNU.sparse."): value for key, value in records if key.startswith(b"GNU.sparse.")}
    if not fields:
        return None
    name = fields.get(b"name", name)
    size = _decimal(fields.get(b"realsize") or fields.get(b"size") or b"")
    if b"map" in fields:
        numbers = [_decimal(number) for number in fields[b"map"].split(b",") if number]
    elif fields.get(b"major") == b"1":
        numbers = _map_before_data(next_block)
    else:
        numbers = [_decimal(value) for key, value in records if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes")]
    if len(numbers) % 2:
        raise SparseError("its map ends in the middle")
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    _check_count(pairs)
    return SparseFile(name, size, _segments(pairs))


def _map_before_data(next_block: Callable[[], bytes]) -> list[int]:
    """Version 1.0: lines of decimal numbers, the first is their count in pairs, filled up to whole blocks."""
    lines: list[bytes] = []
    rest = b""
    count = -1
    while count < 0 or len(lines) < 1 + 2 * count:
        *complete, rest = (rest + next_block()).split(b"\n")
        lines += complete
        if lines and count < 0:
            count = _decimal(lines[0])
            if count > _MAX_SEGMENTS:
                raise SparseError(f"its map has {count} entries")
        if not lines and len(rest) > _SLOT:
            raise SparseError("its map does not begin with a count")
    return [_decimal(line) for line in lines[1 : 1 + 2 * count]]


def _slots(data: bytes, count: int) -> list[tuple[int, int]]:
    slots = (data[index * _SLOT : (index + 1) * _SLOT] for index in range(count))
    return [(_field(slot[:12]), _field(slot[12:])) for slot in slots if slot[0]]


def _segments(pairs: Iterable[tuple[int, int]]) -> tuple[Segment, ...]:
    return tuple(Segment(offset, 0, length) for offset, length in pairs)


def _check_count(pairs: list[tuple[int, int]]) -> None:
    if len(pairs) > _MAX_SEGMENTS:
        raise SparseError(f"its map has more than {_MAX_SEGMENTS} entries")


def _field(raw: bytes) -> int:
    if raw[:1] == b"\x80":
        return int.from_bytes(raw[1:])
    digits = raw.partition(b"\0")[0].strip(b" ")
    try:
        number = int(digits or b"0", 8)
    except ValueError as error:
        raise SparseError("its map has a broken number") from error
    if number < 0:
        raise SparseError("its map has a negative number")
    return number


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise SparseError("its map has a broken number")
    return int(text)
