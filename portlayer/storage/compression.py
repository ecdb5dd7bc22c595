"""Archives and layers as they come: plain, gzip or zstd, told apart by their first bytes."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Protocol, cast

from backports import zstd

from portlayer.errors import InvalidArgumentError


class Compression(StrEnum):
    NONE = ""
    GZIP = "gzip"
    ZSTD = "zstd"


class Reader(Protocol):
    def read(self, size: int, /) -> bytes: ...


_GZIP_MAGIC = b"\x1f\x8b\x08"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# A zstd stream may begin with a frame that decoders skip: 0x184D2A50 .. 0x184D2A5F, little endian.
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"
_UNSUPPORTED = {b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"]\x00\x00": "lzma", b"PK\x03\x04": "zip"}


class _Decompressed:
    """Reads on, with errors that name the file."""

    def __init__(self, stream: Reader, what: str) -> None:
        self._stream = stream
        self._what = what

    def read(self, size: int, /) -> bytes:
        try:
            return self._stream.read(size)
        except EOFError as error:
            raise InvalidArgumentError(f"{self._what} is truncated: its compressed data ends early") from error
        except (gzip.BadGzipFile, zlib.error, zstd.ZstdError) as error:
            raise InvalidArgumentError(f"{self._what} cannot be decompressed: {error}") from error


def detect(path: Path, what: str) -> Compression:
    """How the file is compressed. InvalidArgumentError for what cannot be read here."""
    with path.open("rb") as file:
        head = file.read(8)
    for magic, name in _UNSUPPORTED.items():
        if head.startswith(magic):
            raise InvalidArgumentError(f"{what} is compressed with {name}; gzip, zstd and plain tar can be read")
    if head.startswith(_GZIP_MAGIC):
        return Compression.GZIP
    if head.startswith(_ZSTD_MAGIC) or (head[1:4] == _ZSTD_SKIPPABLE and head[0] >> 4 == 5):
        return Compression.ZSTD
    return Compression.NONE


@contextlib.contextmanager
def open_plain(path: Path, compression: Compression, what: str) -> Iterator[Reader]:
    """A reader of the uncompressed bytes. It raises InvalidArgumentError where the compressed data is broken."""
    with contextlib.ExitStack() as stack:
        if compression is Compression.GZIP:
            yield _Decompressed(stack.enter_context(gzip.open(path, "rb")), what)
        elif compression is Compression.ZSTD:
            yield _Decompressed(cast(Reader, stack.enter_context(zstd.open(path, "rb"))), what)
        else:
            yield stack.enter_context(path.open("rb"))
