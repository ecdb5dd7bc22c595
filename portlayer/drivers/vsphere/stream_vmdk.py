"""A local file as a VMDK of the kind streamOptimized: the only one that a lease for an import takes.

    1 sector   header
    20         descriptor
               grain directory, then all grain tables
               each grain that is not zero: its number, its length, its bytes as a zlib stream
    1          end-of-stream marker

Grains are stored in their zlib streams, not compressed: images are squashfs, compressed already, and of an empty file
system next to nothing is not zero. So every grain takes the same room, and a look at which grains there are tells the
length, which HTTP needs first, and every entry of the tables: the whole goes out in one pass, a few grains in memory.

Facts: VMware, "Virtual Disk Format 5.0", "Stream-Optimized Compressed Sparse Extents"; that the tables may come first,
and versions and flags: VMware's open-vmdk, `vmdk/sparse.c`. zlib: RFC 1950; stored blocks: RFC 1951, 3.2.4.
"""

from __future__ import annotations

import os
import struct
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from portlayer.drivers.vsphere import sparse, vmdk

GRAIN: Final = 1 << 16
_SECTOR = 512
_DESCRIPTOR_SECTORS = 20
# Entries of a grain table, four bytes each.
_ENTRIES = 512
_TABLE_SECTORS = _ENTRIES * 4 // _SECTOR
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH433x")
_VERSION = 3
# The line ends below are there; compressed; each grain says its number.
_FLAGS = 1 | 1 << 16 | 1 << 17
_LINE_ENDS = b"\n \r\n"
_DEFLATE = 1
_GRAIN_HEAD = struct.Struct("<QI")
# Of a block that is stored: whether it is the last, its length, and that again with all bits turned over.
_BLOCK = struct.Struct("<BHH")
_ZLIB, _ADLER = b"\x78\x01", struct.Struct(">I")
# A block holds at most 65535 bytes.
_HALF = GRAIN // 2
_STORED = len(_ZLIB) + 2 * (_BLOCK.size + _HALF) + _ADLER.size
_GRAIN_SECTORS = -(-(_GRAIN_HEAD.size + _STORED) // _SECTOR)
_END = bytes(_SECTOR)
# Grains that are read at once: about a MiB.
_BATCH = 16
_ZEROS = bytes(GRAIN)


class StreamVmdk:
    """`capacity`: of the disk, in bytes; `length`: of what is sent. Methods block."""

    def __init__(self, image: Path) -> None:
        """Looks through the file, which must not change from then on. Raises OSError."""
        with image.open("rb") as file:
            self.capacity = vmdk.whole(sparse.size(file))
            self._grains = _grains(file)
        tables = -(-self.capacity // (GRAIN * _ENTRIES))
        self._directory_sectors = -(-tables * 4 // _SECTOR)
        self._tables_at = 1 + _DESCRIPTOR_SECTORS + self._directory_sectors
        self._grains_at = self._tables_at + tables * _TABLE_SECTORS
        self._tables = tables
        self.length = (self._grains_at + len(self._grains) * _GRAIN_SECTORS) * _SECTOR + len(_END)

    def pieces(self, file: BinaryIO) -> Iterator[bytes]:
        """All that is sent, about a MiB at a time; `file` is the image, open."""
        yield self._head()
        yield from self._all_tables()
        for at in range(0, len(self._grains), _BATCH):
            yield b"".join(_packed(number, _read(file, number)) for number in self._grains[at : at + _BATCH])
        yield _END

    def _head(self) -> bytes:
        sectors = self.capacity // _SECTOR
        header = _HEADER.pack(
            *(b"KDMV", _VERSION, _FLAGS, sectors, GRAIN // _SECTOR, 1, _DESCRIPTOR_SECTORS, _ENTRIES),
            *(0, self._tables_at - self._directory_sectors, self._grains_at, 0, _LINE_ENDS, _DEFLATE),
        )
        directory = array("I", (self._tables_at + table * _TABLE_SECTORS for table in range(self._tables)))
        return header + _padded(_descriptor(sectors), _DESCRIPTOR_SECTORS) + _padded(_little(directory), 1)

    def _all_tables(self) -> Iterator[bytes]:
        """One after the other; entries say in which sector a grain is, 0 that it is zero."""
        position = 0
        for table in range(self._tables):
            entries = array("I", bytes(4 * _ENTRIES))
            while position < len(self._grains) and self._grains[position] < (table + 1) * _ENTRIES:
                entries[self._grains[position] - table * _ENTRIES] = self._grains_at + position * _GRAIN_SECTORS
                position += 1
            yield _little(entries)


def _grains(file: BinaryIO) -> Sequence[int]:
    """The numbers of those that are not zero, in order."""
    found = array("Q")
    for start, end in sparse.extents(file):
        for number in range(start // GRAIN, -(-end // GRAIN)):
            if not (found and found[-1] == number) and _read(file, number) != _ZEROS:
                found.append(number)
    return found


def _read(file: BinaryIO, number: int) -> bytes:
    """A whole grain: zeros follow the end of the file."""
    return os.pread(file.fileno(), GRAIN, number * GRAIN).ljust(GRAIN, b"\0")


def _packed(number: int, grain: bytes) -> bytes:
    blocks = (_BLOCK.pack(last, _HALF, _HALF ^ 0xFFFF) + grain[last * _HALF :][:_HALF] for last in (0, 1))
    head = _GRAIN_HEAD.pack(number * (GRAIN // _SECTOR), _STORED)
    return _padded(b"".join((head, _ZLIB, *blocks, _ADLER.pack(zlib.adler32(grain)))), _GRAIN_SECTORS)


def _descriptor(sectors: int) -> bytes:
    # Geometry is for BIOSes of old: as open-vmdk has it.
    cylinders = min(65535, -(-sectors // (255 * 63)))
    return (
        "# Disk DescriptorFile\nversion=1\nCID=fffffffd\nparentCID=ffffffff\n"
        f'createType="streamOptimized"\n\nRW {sectors} SPARSE "disk.vmdk"\n\n'
        f'ddb.virtualHWVersion = "4"\nddb.adapterType = "lsilogic"\nddb.geometry.cylinders = "{cylinders}"\n'
        'ddb.geometry.heads = "255"\nddb.geometry.sectors = "63"\n'
    ).encode()


def _little(numbers: array[int]) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def _padded(data: bytes, sectors: int) -> bytes:
    """With zeros to a whole number of sectors, at least so many."""
    return data.ljust(max(sectors, -(-len(data) // _SECTOR)) * _SECTOR, b"\0")
