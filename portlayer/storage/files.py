"""Files that survive a crash at any instant, and the errors of the operating system as errors of the port layer."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from portlayer.errors import ExhaustedError, UnavailableError
from portlayer.storage.limits import MEBIBYTE

CHUNK_BYTES = MEBIBYTE
_EXHAUSTED = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_SPACE_CHECK_BYTES = 16 * MEBIBYTE


@contextlib.contextmanager
def storage_errors(action: str) -> Iterator[None]:
    """OSError in the block becomes ExhaustedError where something ran out, UnavailableError otherwise."""
    try:
        yield
    except OSError as error:
        kind = ExhaustedError if error.errno in _EXHAUSTED else UnavailableError
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise kind(f"{action}: {reason}") from error


def write_durably(path: Path, data: bytes) -> None:
    """Replaces `path`: after a crash at any point it holds either the old or the new bytes, whole."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def check_space(path: Path, reserve_bytes: int) -> None:
    """Raises ExhaustedError when the file system of `path` is about to be full."""
    status = os.statvfs(path)
    free = status.f_bavail * status.f_frsize
    if free < reserve_bytes:
        raise ExhaustedError(f"no space left on device: {free >> 20} MiB free in {path}, which must stay free")


class SpaceWatch:
    """Writes to a file, and stops before the disk is full to the last byte."""

    def __init__(self, file: BinaryIO, directory: Path, reserve_bytes: int) -> None:
        self._file = file
        self._directory = directory
        self._reserve_bytes = reserve_bytes
        self._unchecked = _SPACE_CHECK_BYTES

    def write(self, data: bytes) -> None:
        self._unchecked += len(data)
        if self._unchecked >= _SPACE_CHECK_BYTES:
            check_space(self._directory, self._reserve_bytes)
            self._unchecked = 0
        self._file.write(data)


def copy_hashed(read: Callable[[int], bytes], write: Callable[[bytes], object], check: Callable[[], None]) -> str:
    """Copies until `read` gives nothing; the digest of what went through. `check` may raise to stop it."""
    digest = hashlib.sha256()
    while data := read(CHUNK_BYTES):
        check()
        digest.update(data)
        write(data)
    return f"sha256:{digest.hexdigest()}"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
