"""Reads tar, as ustar, GNU tar and pax write it, from a seekable file.

Unlike the standard library's module it never takes a broken archive for a short one, holds nothing of it in memory
beyond one header, keeps names and extended attributes as the bytes they are, and says where an error lies.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import BinaryIO, NoReturn

from portlayer.errors import InvalidArgumentError
from portlayer.storage.limits import PATH_BYTES, Limits
from portlayer.storage.tar_sparse import Segment, SparseError, SparseFile, old_gnu_sparse, pax_sparse

BLOCK = 512
_ZEROS = bytes(BLOCK)
_XATTR_PREFIX = b"SCHILY.xattr."


class Kind(Enum):
    """What an entry makes."""

    FILE = "0"
    HARD_LINK = "1"
    SYMLINK = "2"
    CHARACTER_DEVICE = "3"
    BLOCK_DEVICE = "4"
    DIRECTORY = "5"
    FIFO = "6"


@dataclass(slots=True)
class Entry:
    """One file, directory or link. Its name is as it stands in the archive."""

    name: bytes
    kind: Kind
    mode: int
    uid: int
    gid: int
    # Seconds since 1970; may be negative.
    mtime: int
    # Of a file's content, holes included.
    size: int
    link: bytes
    # Major and minor number.
    device: tuple[int, int]
    xattrs: dict[bytes, bytes]
    # Where a file's content lies in the archive; gaps are holes.
    segments: tuple[Segment, ...]


_KINDS = {kind.value.encode(): kind for kind in Kind} | {b"\0": Kind.FILE, b"7": Kind.FILE, b"S": Kind.FILE}
# Entries that describe the archive rather than files: global pax header, volume label. (GNU's D is not skipped: it is
# a directory of an incremental backup, which is no image.)
_SKIPPED = (b"g", b"V")


@dataclass(slots=True)
class _Pending:
    """Extended headers that apply to the entry behind them."""

    name: bytes = b""
    link: bytes = b""
    records: list[tuple[bytes, bytes]] = field(default_factory=list)
    size: int = 0


class TarReader:
    """The entries of an archive, once, in order. Raises InvalidArgumentError for whatever is not in order."""

    def __init__(
        self, file: BinaryIO, what: str, limits: Limits, check: Callable[[], None], *, trailer: bool = False
    ) -> None:
        """`what` names the archive in messages. `trailer`: it must end as tar ends, so that no end can be missing."""
        self._file = file
        self._what = what
        self._limits = limits
        self._check = check
        self._trailer = trailer
        self._total = file.seek(0, 2)
        self._position = 0

    def __iter__(self) -> Iterator[Entry]:
        self._position = 0
        pending = _Pending()
        while header := self._header():
            self._check()
            kind, size = header[156:157], self._number(header, 124, 12, "size")
            if kind in b"xLK" and kind:
                self._extend(pending, kind, size)
            elif kind in _SKIPPED:
                self._skip(size)
            else:
                yield self._entry(header, kind, size, pending)
                pending = _Pending()
        if pending.name or pending.link or pending.records:
            self._refuse("ends after an extended header")

    def _header(self) -> bytes:
        """The next header; b"" at the end of the archive."""
        start = self._position
        block = self._read(BLOCK, allow_end=True)
        if not block:
            if self._trailer:
                self._refuse("is truncated: it ends without tar's end marker")
            return b""
        if block == _ZEROS:
            if (second := self._read(BLOCK, allow_end=True)) and second != _ZEROS:
                self._refuse("goes on after half an end marker", start)
            return b""
        if not _checksum_fits(block, self._number(block, 148, 8, "checksum")):
            self._refuse("is no tar archive" if start == 0 else "has a broken header", start)
        return block

    def _extend(self, pending: _Pending, kind: bytes, size: int) -> None:
        pending.size += size
        if pending.size > self._limits.tar_header_bytes:
            self._refuse(f"has {pending.size} bytes of extended headers for one entry")
        data = self._read(size)
        self._skip_padding(size)
        if kind == b"L":
            pending.name = data.rstrip(b"\0")
        elif kind == b"K":
            pending.link = data.rstrip(b"\0")
        else:
            pending.records.extend(self._pax_records(data))

    def _pax_records(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        position = 0
        while position < len(data) and data[position]:
            space = data.find(b" ", position, position + 20)
            digits = data[position:space]
            if space < 0 or not digits.isdigit():
                self._refuse("has a broken pax header")
            end = position + int(digits)
            name, equals, value = data[space + 1 : end - 1].partition(b"=")
            if end > len(data) or end <= space or data[end - 1 : end] != b"\n" or not equals or not name:
                self._refuse("has a broken pax header")
            yield name, value
            position = end

    def _entry(self, header: bytes, type_: bytes, size: int, pending: _Pending) -> Entry:
        records = dict(pending.records)
        name = records.get(b"path") or pending.name or _header_name(header)
        kind = _KINDS.get(type_)
        if kind is None:
            self._refuse(f"has an entry of unknown type {type_!r}: {_show(name)}")
        if kind is Kind.FILE and type_ != b"S" and name.endswith(b"/"):
            kind = Kind.DIRECTORY  # as archives older than POSIX spell it
        size = self._record_number(records, b"size", size)
        content = SparseFile(name, 0, ())
        if kind is Kind.FILE:
            content = self._content(header, type_, size, name, pending.records)
        link = records.get(b"linkpath") or pending.link or _text(header[157:257])
        for path in (content.name, link):
            self._check_path(path)
        device = kind in (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE)
        return Entry(
            name=content.name,
            kind=kind,
            mode=stat.S_IMODE(self._number(header, 100, 8, "mode")),
            uid=self._record_number(records, b"uid", self._number(header, 108, 8, "uid")),
            gid=self._record_number(records, b"gid", self._number(header, 116, 8, "gid")),
            mtime=self._record_number(records, b"mtime", self._number(header, 136, 12, "mtime")),
            size=content.size,
            link=link if kind in (Kind.SYMLINK, Kind.HARD_LINK) else b"",
            device=(self._number(header, 329, 8, "device"), self._number(header, 337, 8, "device"))
            if device
            else (0, 0),
            xattrs={
                key.removeprefix(_XATTR_PREFIX): value
                for key, value in records.items()
                if key.startswith(_XATTR_PREFIX)
            },
            segments=content.segments,
        )

    def _content(
        self, header: bytes, type_: bytes, size: int, name: bytes, records: list[tuple[bytes, bytes]]
    ) -> SparseFile:
        """Where a file's content lies; leaves the position behind it."""
        try:
            if type_ == b"S":
                # The continued map stands before the content and does not count as such.
                sparse: SparseFile | None = old_gnu_sparse(header, name, lambda: self._read(BLOCK))
                start, end = self._position, self._position + size
            else:
                start, end = self._position, self._position + size
                sparse = pax_sparse(name, records, lambda: self._read(BLOCK))
            content = sparse.placed(self._position, end) if sparse else SparseFile(name, size, ())
        except SparseError as error:
            self._refuse(f"has a broken sparse file: {_show(name)}: {error}")
        if not sparse and size:
            content = SparseFile(name, size, (Segment(0, start, size),))
        self._position = start
        self._skip(size)
        return content

    def _check_path(self, path: bytes) -> None:
        if b"\0" in path:
            self._refuse(f"has a name with a NUL byte: {_show(path)}")
        if len(path) > PATH_BYTES:
            self._refuse(f"has a name of {len(path)} bytes, longer than {PATH_BYTES}: {_show(path)}")

    def _number(self, header: bytes, start: int, length: int, what: str) -> int:
        """Octal digits, or GNU's base 256 for what does not fit them."""
        raw = header[start : start + length]
        if raw[:1] in (b"\x80", b"\xff"):
            return int.from_bytes(raw[1:], signed=False) - (256 ** (length - 1) if raw[0] == 0xFF else 0)
        digits = raw.partition(b"\0")[0].strip(b" ")
        if not digits:
            return 0
        try:
            return int(digits, 8)
        except ValueError:
            self._refuse("is no tar archive" if self._position == BLOCK else f"has a broken {what} in a header")

    def _record_number(self, records: dict[bytes, bytes], key: bytes, default: int) -> int:
        text = records.get(key, b"")
        if not text:
            return self._whole(default, key)
        whole = text.partition(b".")[0]
        if not whole.removeprefix(b"-").isdigit() or len(whole) > 20:
            self._refuse(f"has a broken pax record: {_show(key)}={_show(text)}")
        return self._whole(int(whole), key)

    def _whole(self, number: int, key: bytes) -> int:
        if number < 0 and key != b"mtime":
            self._refuse(f"has a negative {key.decode()}")
        return number

    def _read(self, size: int, *, allow_end: bool = False) -> bytes:
        self._file.seek(self._position)
        data = self._file.read(size)
        if len(data) < size and not (allow_end and not data):
            self._refuse("is truncated", self._position)
        self._position += len(data)
        return data

    def _skip(self, size: int) -> None:
        if size < 0:
            self._refuse("has an entry of negative size")
        if self._position + size > self._total:
            missing = self._position + size - self._total
            self._refuse(f"is truncated: an entry declares {size} bytes, of which {missing} are missing")
        self._position += size
        self._skip_padding(size)

    def _skip_padding(self, size: int) -> None:
        self._position = min(self._position + -size % BLOCK, self._total)

    def _refuse(self, reason: str, position: int | None = None) -> NoReturn:
        where = self._position if position is None else position
        raise InvalidArgumentError(f"{self._what} {reason} (at byte {where})")


def _checksum_fits(block: bytes, expected: int) -> bool:
    """The sum of a header's bytes, with blanks for itself; some writers of old took bytes for signed."""
    unsigned = sum(block) - sum(block[148:156]) + 8 * 0x20
    if expected == unsigned:
        return True
    return expected == unsigned - 256 * sum(byte > 127 for byte in block[:148] + block[156:])


def _header_name(header: bytes) -> bytes:
    name, prefix = _text(header[:100]), _text(header[345:500])
    # GNU tar keeps other things where POSIX has the prefix.
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def _text(raw: bytes) -> bytes:
    return raw.partition(b"\0")[0]


def _show(name: bytes) -> str:
    text = name[:200].decode(errors="backslashreplace")
    return repr(text) + ("..." if len(name) > 200 else "")
