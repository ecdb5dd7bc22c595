"""A container's log: files that are appended to, rotated by size, and limited in number.

Writing is write(2): what was appended survives the port layer being killed at any instant. A record cut short by such
a death, or by a full disk, is removed when the log is opened or written next.
"""

from __future__ import annotations

import asyncio
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from portlayer.logs.records import Record, decode, encode

DEFAULT_FILE_BYTES = 32 << 20
DEFAULT_FILES = 4
_SUFFIX = ".log"
_POSITION = struct.Struct("<IQ")
_READ_BYTES = 4 << 20


@dataclass(frozen=True)
class Position:
    """Where a reader is: file number and byte in it."""

    file: int
    byte: int


class Log:
    """Appends records below `directory`; with `keep` false nothing but the position is kept.

    `run` and `end_offset` say what was recorded last, so that a new port layer can ask the agent for the rest.
    `changed` is set and replaced whenever something was appended or the log was sealed.
    """

    def __init__(self, directory: Path, *, max_file_bytes: int = 0, max_files: int = 0, keep: bool = True) -> None:
        self.directory = directory
        self._max_file_bytes = max_file_bytes or DEFAULT_FILE_BYTES
        self._max_files = max_files or DEFAULT_FILES
        self._keep = keep
        self._descriptor = -1
        self._file = 0
        self._size = 0
        self.run = 0
        self.end_offset = 0
        self.changed = asyncio.Event()

    def open(self) -> None:
        """Finds the last whole record and cuts off what follows it. Blocks."""
        self.directory.mkdir(mode=0o700, exist_ok=True)
        if not self._keep:
            self._open_position()
            return
        files = self.files()
        self._file = files[-1] if files else 1
        for number in reversed(files):
            size = self._scan(number)
            if number == self._file:
                self._size = size
            if self.run:
                break
        self._descriptor = os.open(self._path(self._file), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._descriptor, self._size)

    def close(self) -> None:
        """Drops the descriptor."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def append(self, record: Record) -> None:
        """Adds a record; OSError (a full disk) leaves the log as it was."""
        if self._keep:
            self._append(encode(record))
        else:
            os.pwrite(self._descriptor, _POSITION.pack(record.run, record.offset + len(record.data)), 0)
        self.run, self.end_offset = record.run, record.offset + len(record.data)
        self.notify()

    def notify(self) -> None:
        """Wakes those who follow."""
        self.changed.set()
        self.changed = asyncio.Event()

    def begin_run(self, run: int) -> None:
        """Output of a new start begins at offset 0."""
        if run != self.run:
            self.run, self.end_offset = run, 0

    def files(self) -> list[int]:
        """Numbers of the files that exist, oldest first."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        return sorted(int(name[: -len(_SUFFIX)]) for name in names if name.endswith(_SUFFIX))

    def end(self) -> Position:
        """The position behind the last record."""
        return Position(self._file, self._size)

    def read(self, position: Position, size: int) -> tuple[bytes, Position | None]:
        """Bytes from a position within its file, and the beginning of the next file when this one is used up.

        Blocks. The position is None when nothing is known to follow (yet).
        """
        end = self.end()
        limit = end.byte if position.file == end.file else None
        try:
            with open(self._path(position.file), "rb") as file:
                file.seek(position.byte)
                data = file.read(size if limit is None else max(0, min(size, limit - position.byte)))
        except FileNotFoundError:
            data = b""  # rotated away under a reader that is very slow
        if data or position.file >= end.file:
            return data, None
        return b"", next((Position(number, 0) for number in self.files() if number > position.file), None)

    def _append(self, data: bytes) -> None:
        if self._size and self._size + len(data) > self._max_file_bytes:
            self._rotate()
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._descriptor, data[written:] if written else data, self._size + written)
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(data)

    def _rotate(self) -> None:
        descriptor = os.open(self._path(self._file + 1), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.close(self._descriptor)
        self._descriptor, self._file, self._size = descriptor, self._file + 1, 0
        for number in self.files()[: -self._max_files]:
            self._path(number).unlink(missing_ok=True)

    def _scan(self, number: int) -> int:
        """Goes through a file; notes its last record, returns the size of its whole ones."""
        size = 0
        with open(self._path(number), "rb") as file:
            while True:
                file.seek(size)
                block = file.read(_READ_BYTES)
                records, end = decode(block)
                if not records:
                    return size
                self.run, self.end_offset = records[-1].run, records[-1].offset + len(records[-1].data)
                size += end

    def _open_position(self) -> None:
        self._descriptor = os.open(self.directory / "position", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        data = os.pread(self._descriptor, _POSITION.size, 0)
        if len(data) == _POSITION.size:
            self.run, self.end_offset = _POSITION.unpack(data)

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:08d}{_SUFFIX}"
