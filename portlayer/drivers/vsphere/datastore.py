"""The files of a VCH on a datastore: implements Datastore, and has what machines start from.

DIRECTORY/images/NAME.vmdk       image disks
          empties/ext4-SIZE.vmdk empty writable disks, one for each size
          guest/DIGEST.iso       guest images
          incoming/              what is on its way (arrivals.py)
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from pyVmomi import vim

from portlayer.drivers import disk_names, ext4
from portlayer.drivers.base import SquashfsCompression
from portlayer.drivers.uninterrupted import uninterrupted
from portlayer.drivers.vsphere import arrivals, namespaces, vmdk
from portlayer.drivers.vsphere import files as datastore_files
from portlayer.drivers.vsphere.arrivals import Arrivals
from portlayer.drivers.vsphere.files import Files, Place
from portlayer.drivers.vsphere.imported_disks import ImportedDisks, ImportSite
from portlayer.drivers.vsphere.session import Session
from portlayer.drivers.vsphere.upload import Content, Folder, Progress
from portlayer.drivers.vsphere.vmdk import Disks
from portlayer.errors import DriverError, ExhaustedError, InvalidArgumentError, NotFoundError, PortLayerError

IMAGES, EMPTIES, GUEST = "images", "empties", "guest"
_ISO = ".iso"
_DIRECTORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,79}(/[A-Za-z0-9][A-Za-z0-9 ._-]{0,79}){0,7}")
_SCRATCH: Final = ".empty-"
_DIGEST = re.compile(r"[0-9a-f]{16,128}")
# vSphere brings what it knows about free space up to date on request, which takes a host some work.
_REFRESH_S: Final = 60.0


class VsphereDatastore:
    """To be opened first. Methods raise PortLayerError."""

    # The kernel linux-esx of Photon OS reads no lz4.
    squashfs_compression = SquashfsCompression.ZSTD

    def __init__(
        self,
        session: Session,
        datacenter: vim.Datacenter,
        datastore: vim.Datastore,
        directory: str,
        work_dir: Path,
        *,
        import_site: ImportSite | None = None,
        verify: bool = False,
    ) -> None:
        """`directory` of this VCH alone; `work_dir` local, kept. `verify`: read back each disk that was uploaded.

        `import_site` is for datastores that keep objects.
        """
        if not _DIRECTORY.fullmatch(directory):
            raise InvalidArgumentError(f"{directory!r} is no directory for a datastore: letters, digits, . _ - and /")
        self._session = session
        self._objects = (datacenter, datastore)
        self._root = directory  # by the path that the datastore has for it, once this is open
        self._import_site = import_site
        self._work_dir = work_dir
        self._verify = verify
        self._known: set[str] = set()
        self._sizes: dict[str, int] = {}  # of image disks, which never change
        self._refreshed = -_REFRESH_S

    async def open(self) -> None:
        """Makes the directories and removes what an earlier life left half-made. Called once, first."""
        place = await datastore_files.find(self._session, *self._objects)
        self._place: Place = place
        self._files = Files(self._session, place)
        self._folder = Folder(self._session, place.datacenter_path, place.name)
        try:
            self._disks = self._disks_of(place)
            self._root = await namespaces.ensure(self._session, place, self._root)
            owner = await asyncio.to_thread(_prepare, self._work_dir)
            self._arrivals = Arrivals(self._root, owner, self._files, self._disks, self._folder)
            await self._arrivals.open()
            for name in (IMAGES, EMPTIES, GUEST):
                await self._files.make_directory(f"{self._root}/{name}")
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        await self._folder.close()

    async def remove_all(self) -> None:
        """Removes the VCH's directory. Its VMs are gone; afterwards this can only be closed."""
        self._known.clear()
        incoming = f"{self._root}/{arrivals.INCOMING}"
        on_the_way = [f"{incoming}/{entry.name}" for entry in await self._files.entries(incoming)]
        for directory in (f"{self._root}/{IMAGES}", f"{self._root}/{EMPTIES}", *on_the_way):
            await self._disks.remove_directory(directory)
        await namespaces.remove(self._session, self._place, self._files, self._root)

    # Image disks

    async def put_image_disk(self, name: str, source: Path, *, on_progress: Progress | None = None) -> None:
        """Moves the local file `source` in as image disk `name`; atomic. No effect when the name exists."""
        target = self._image(name)

        async def make(path: str) -> None:
            await self._check_room(source)
            await self._disks.make(path, source, on_progress=on_progress, verify=self._verify)

        async with self._arrivals.lock(target):
            await self._arrivals.bring(target, make)
        await asyncio.to_thread(source.unlink, missing_ok=True)

    async def has_image_disk(self, name: str) -> bool:
        return await self._disks.exists(self._image(name))

    async def remove_image_disk(self, name: str) -> None:
        """No effect when it does not exist."""
        target = self._image(name)
        async with self._arrivals.lock(target):
            self._sizes.pop(target, None)
            await uninterrupted(self._disks.remove(target))

    async def image_disk_bytes(self, name: str) -> int:
        target = self._image(name)
        if (size := self._sizes.get(target)) is None:
            if (size := await self._disks.size(target)) is None:
                raise NotFoundError(f"image disk {name} does not exist")
            self._sizes[target] = size
        return size

    async def image_disks(self) -> set[str]:
        """The names of all."""
        return vmdk.disk_names(await self._names(IMAGES))

    def image_path(self, name: str) -> str:
        """Where image disk `name` is or would be, for the configuration of VMs."""
        return self._place.path(self._image(name))

    # What machines start from

    async def empty_disk(self, size: int) -> str:
        """The path of an empty ext4 disk of at least `size` bytes, to the next MiB; made when there is none yet."""
        size = ext4.whole_size(size)

        async def make(path: str) -> None:
            try:
                with tempfile.TemporaryDirectory(dir=self._work_dir, prefix=_SCRATCH) as scratch:
                    image = Path(scratch) / "image"
                    await uninterrupted(asyncio.to_thread(ext4.make, image, size, packed=True))
                    await self._disks.make(path, image, verify=self._verify)
            except OSError as error:
                kind = ExhaustedError if error.errno == errno.ENOSPC else DriverError
                raise kind(f"making an empty disk on this machine: {error}") from error

        return await self._once(f"{self._root}/{EMPTIES}/ext4-{size}{vmdk.SUFFIX}", make)

    async def guest_iso(self, image: Path, digest: str) -> str:
        """The path of the guest image `digest`, uploaded from a local file when it is not there yet, and checked."""

        async def make(path: str) -> None:
            await self._check_room(image)
            length = (await asyncio.to_thread(image.stat)).st_size
            await self._folder.put(path, Content(image, length), verify=True)

        return await self._once(self._iso(digest), make)

    async def guest_isos(self) -> set[str]:
        """The digests of all."""
        return {name.removesuffix(_ISO) for name in await self._names(GUEST) if name.endswith(_ISO)}

    async def remove_guest_iso(self, digest: str) -> None:
        """No effect when it does not exist."""
        target = self._iso(digest)
        async with self._arrivals.lock(target):
            self._known.discard(target)
            await self._files.remove(target)

    def look_again(self) -> None:
        """Forgets what is known to be there: for when vSphere says that something is not."""
        self._known.clear()
        self._sizes.clear()

    # Space

    async def free_bytes(self) -> int:
        return (await self._summary())[0]

    async def capacity_bytes(self) -> int:
        return (await self._summary())[1]

    async def _summary(self) -> tuple[int, int]:
        datastore = self._place.datastore
        if time.monotonic() - self._refreshed >= _REFRESH_S:
            self._refreshed = time.monotonic()
            with contextlib.suppress(PortLayerError):  # what is known is good enough then
                await self._session.call(datastore.RefreshDatastore, what="refreshing the datastore")
        facts = (await self._session.read([datastore], ["summary.freeSpace", "summary.capacity"])).get(datastore)
        if not facts or "summary.freeSpace" not in facts:
            raise DriverError(f"the datastore {self._place.name} does not say how much space is free")
        return int(facts["summary.freeSpace"]), int(facts["summary.capacity"])

    async def _check_room(self, source: Path) -> None:
        """Before anything is sent: some datastores notice only at the end."""
        try:
            needed = (await asyncio.to_thread(source.stat)).st_size
        except OSError as error:
            raise DriverError(f"uploading {source}: {error}") from error
        if (free := await self.free_bytes()) < needed:
            raise ExhaustedError(f"the datastore {self._place.name} has {free} bytes free, {needed} are needed")

    # Names and places

    def _disks_of(self, place: Place) -> Disks:
        if not place.keeps_objects:
            return Disks(self._session, place, self._files, self._folder)
        if self._import_site is None:
            raise InvalidArgumentError(
                f"on the datastore {place.name} disks come by VMs, and no place for VMs is named"
            )
        return ImportedDisks(self._session, place, self._files, self._folder, self._import_site)

    async def _once(self, target: str, make: Callable[[str], Awaitable[None]]) -> str:
        """Has `make` make the file `target`, unless there is one. Returns its path for VMs."""
        async with self._arrivals.lock(target):
            if target not in self._known:
                await self._arrivals.bring(target, make)
            self._known.add(target)
        return self._place.path(target)

    def _image(self, name: str) -> str:
        if vmdk.is_ambiguous(disk_names.checked(name)):
            raise InvalidArgumentError(f"{name!r} is no name for an image disk on a datastore of vSphere")
        return f"{self._root}/{IMAGES}/{name}{vmdk.SUFFIX}"

    def _iso(self, digest: str) -> str:
        if not _DIGEST.fullmatch(digest):
            raise InvalidArgumentError(f"{digest!r} is no digest of a guest image: hexadecimal digits")
        return f"{self._root}/{GUEST}/{digest}{_ISO}"

    async def _names(self, directory: str) -> list[str]:
        return [entry.name for entry in await self._files.entries(f"{self._root}/{directory}")]


def _prepare(work_dir: Path) -> str:
    """The number of the port layer that works in a directory; a crash may have left something there."""
    owner = arrivals.owner_of(work_dir)
    for left in work_dir.glob(f"{_SCRATCH}*"):
        shutil.rmtree(left)
    return owner
