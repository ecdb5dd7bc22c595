"""Image disks in a directory."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

from portlayer.drivers import disk_names
from portlayer.drivers.base import SquashfsCompression
from portlayer.drivers.qemu import files
from portlayer.drivers.qemu.failures import os_errors
from portlayer.errors import NotFoundError

_DIRECTORY = "disks"


class LocalDatastore:
    """Implements Datastore below `state_dir`."""

    # Costs the least on both sides, and space on the host is cheap.
    squashfs_compression = SquashfsCompression.LZ4

    def __init__(self, state_dir: Path) -> None:
        self._root = state_dir.absolute() / _DIRECTORY

    async def put_image_disk(self, name: str, source: Path) -> None:
        with os_errors(f"storing image disk {name}"):
            await asyncio.to_thread(_put, source, self.path(name))

    async def has_image_disk(self, name: str) -> bool:
        return self.path(name).is_file()

    async def remove_image_disk(self, name: str) -> None:
        with os_errors(f"removing image disk {name}"):
            self.path(name).unlink(missing_ok=True)

    async def image_disk_bytes(self, name: str) -> int:
        try:
            return self.path(name).stat().st_size
        except FileNotFoundError as error:
            raise NotFoundError(f"image disk {name} does not exist") from error

    async def free_bytes(self) -> int:
        with os_errors("asking for free space"):
            self._root.mkdir(parents=True, exist_ok=True)
            status = os.statvfs(self._root)
        return status.f_bavail * status.f_frsize

    def path(self, name: str) -> Path:
        """Where disk `name` lies or would lie."""
        return self._root / disk_names.checked(name)


def _put(source: Path, target: Path) -> None:
    if target.exists():
        source.unlink(missing_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    files.sync_file(source)
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy_in(source, target)
    files.sync_directory(target.parent)


def _copy_in(source: Path, target: Path) -> None:
    """From another file system. A half copy carries a name that is no disk's, and the next attempt replaces it."""
    partial = target.with_name(f".{target.name}.new")
    partial.unlink(missing_ok=True)
    try:
        files.copy_sparse(source, partial)
        files.sync_file(partial)
        partial.rename(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    source.unlink()
