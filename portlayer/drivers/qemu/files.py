"""Files that survive a crash at any instant, copies that keep holes, and sockets below long paths."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

_FICLONE = 0x40049409  # ioctl: share all extents of another file (btrfs, XFS)


def write_durably(path: Path, data: bytes) -> None:
    """Replaces `path`: after a crash at any point it holds either the old or the new bytes, whole."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    with open_directory(path) as fd:
        os.fsync(fd)


def copy_sparse(source: Path, target: Path) -> None:
    """Copies `source`, sharing its blocks where the file system can, and keeping its holes everywhere else."""
    with source.open("rb") as old, target.open("xb") as new:
        with contextlib.suppress(OSError):
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
            return
        new.truncate(os.fstat(old.fileno()).st_size)
        copy_data(old.fileno(), new.fileno())


def copy_data(source: int, target: int) -> None:
    """Copies what is no hole of an open file to the same places in another."""
    for start, end in _data_ranges(source, os.fstat(source).st_size):
        _copy_range(source, target, start, end)


def _data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but holes from here on
            return
        position = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, position


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        data = os.pread(source, min(1 << 20, end - start), start)
        if not data:
            return
        written = 0
        while written < len(data):
            written += os.pwrite(target, data[written:], start + written)
        start += len(data)


@contextlib.contextmanager
def open_directory(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def socket_path(path: Path) -> Iterator[str]:
    """A short name for the socket `path`: the kernel takes 107 bytes, and state directories may lie deeper."""
    with open_directory(path.parent) as fd:
        yield f"/proc/self/fd/{fd}/{path.name}"


def listen(path: Path) -> socket.socket:
    """A socket listening at `path`, in the place of one that is left over."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        with socket_path(path) as name:
            listener.bind(name)
        path.chmod(0o600)
        listener.listen(1)
    except BaseException:
        listener.close()
        raise
    return listener


def connect(path: Path) -> socket.socket:
    """A socket connected to `path`, ready for asyncio. Connecting to a local socket does not block."""
    client = socket.socket(socket.AF_UNIX)
    try:
        client.setblocking(False)
        with socket_path(path) as name:
            client.connect(name)
    except BaseException:
        client.close()
        raise
    return client
