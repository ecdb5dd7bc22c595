"""Virtual disks of a datastore, made by VirtualDiskManager and filled over HTTPS.

    1  CreateVirtualDisk_Task   NAME.vmdk (descriptor) and NAME-flat.vmdk, thin, as large as what is to be sent
    2  PUT NAME-flat.vmdk       the content, up to the last byte that is not zero
    3  ExtendVirtualDisk_Task   to the size the disk is to have, when that is more

The descriptor is vSphere's own work, so it fits whatever file system the datastore has; we write bytes of the disk
alone. docs/adr/0008 says which other ways there are and why not.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pyVmomi import vim

from portlayer.drivers.vsphere import files as datastore_files
from portlayer.drivers.vsphere import sparse
from portlayer.drivers.vsphere.files import Files, Place
from portlayer.drivers.vsphere.session import Session
from portlayer.drivers.vsphere.upload import Content, Folder, Progress
from portlayer.errors import AlreadyExistsError, DriverError, NotFoundError, PortLayerError

SUFFIX: Final = ".vmdk"
_FLAT = "-flat"
_KIB = 1 << 10
# VMFS gives out space by it.
_GRAIN = 1 << 20


def whole(size: int) -> int:
    """Bytes of the smallest disk that can hold `size` bytes."""
    return max(1, -(-size // _GRAIN)) * _GRAIN


def content_path(path: str) -> str:
    """The file with the bytes of the disk `path`."""
    return path.removesuffix(SUFFIX) + _FLAT + SUFFIX


def disk_names(files: Iterable[str]) -> set[str]:
    """The disks among the files of a directory, without their endings. vSphere may list the content too, or not."""
    disks = {name.removesuffix(SUFFIX) for name in files if name.endswith(SUFFIX)}
    return {name for name in disks if not (name.endswith(_FLAT) and name.removesuffix(_FLAT) in disks)}


def is_ambiguous(name: str) -> bool:
    """Whether a disk of that name (no ending) would have the place of another one's content."""
    return name.endswith(_FLAT)


async def delete(session: Session, path: str, datacenter: vim.Datacenter) -> None:
    """A disk, by its whole path. NotFoundError when it is gone, or one of its files is."""
    method = session.content.virtualDiskManager.DeleteVirtualDisk_Task
    await session.run(method, path, datacenter, what=f"removing the disk {path}")


async def remove(session: Session, place: Place, files: Files, path: str) -> None:
    """Of that place. No effect when it is gone. Half a disk is removed too. ConflictError when a running VM has it."""
    try:
        await delete(session, place.path(path), place.datacenter)
    except NotFoundError:  # of all its files, or of one of them
        await files.remove(path)
        await files.remove(content_path(path))


class Disks:
    """Paths are relative to the datastore and end in ".vmdk". Methods raise PortLayerError."""

    def __init__(self, session: Session, place: Place, files: Files, folder: Folder) -> None:
        self._session = session
        self._manager = session.content.virtualDiskManager
        self._place = place
        self._files = files
        self._folder = folder

    async def make(self, path: str, image: Path, *, on_progress: Progress | None = None, verify: bool = False) -> None:
        """A new disk with the bytes of a local file, then zeros to the next MiB. A name that nobody else uses.

        When it fails there may be half a disk.
        """
        try:
            size, written = await asyncio.to_thread(_measure, image)
        except OSError as error:
            raise DriverError(f"uploading {image}: {error}") from error
        capacity, sent = whole(size), whole(written)
        await self._create(path, sent)
        await self._folder.put(content_path(path), Content(image, sent), on_progress=on_progress, verify=verify)
        if capacity > sent:
            await self._extend(path, capacity)

    async def move(self, source: str, target: str) -> None:
        """As files.move."""
        method = self._manager.MoveVirtualDisk_Task
        await datastore_files.move(self._session, method, self._place, source, target, "moving the disk")

    async def remove(self, path: str) -> None:
        """No effect when it is gone. Half a disk is removed too. ConflictError when a running VM has it."""
        await remove(self._session, self._place, self._files, path)

    async def remove_directory(self, path: str) -> None:
        """With the disks in it. No effect when it is gone."""
        await self._files.remove(path)

    async def exists(self, path: str) -> bool:
        return await self._folder.size(path) is not None

    async def size(self, path: str) -> int | None:
        """Bytes of its content; None when there is no such disk."""
        if await self._folder.size(path) is None:
            return None
        return await self._folder.size(content_path(path))

    async def _create(self, path: str, capacity: int) -> None:
        place, manager = self._place, vim.VirtualDiskManager
        spec = manager.FileBackedVirtualDiskSpec(
            diskType=manager.VirtualDiskType.thin,
            # PVSCSI's disks call themselves this too; the controller is the VM's.
            adapterType=manager.VirtualDiskAdapterType.lsiLogic,
            capacityKb=capacity // _KIB,
        )
        with contextlib.suppress(AlreadyExistsError):  # made by an attempt whose answer was lost
            await self._session.run(
                self._manager.CreateVirtualDisk_Task,
                place.path(path),
                place.datacenter,
                spec,
                what=f"making the disk {place.path(path)}",
            )

    async def _extend(self, path: str, capacity: int) -> None:
        place = self._place
        try:
            await self._session.run(
                self._manager.ExtendVirtualDisk_Task,
                place.path(path),
                place.datacenter,
                capacity // _KIB,
                False,
                what=f"extending the disk {place.path(path)}",
            )
        except PortLayerError:
            # An attempt whose answer was lost may have done it; vSphere refuses to extend a disk to the size it has.
            if await self._folder.size(content_path(path)) != capacity:
                raise


def _measure(image: Path) -> tuple[int, int]:
    """The size of a local file, and up to where it has content: the holes at its end do not count."""
    with image.open("rb") as file:
        return sparse.size(file), max((end for _, end in sparse.extents(file)), default=0)
