"""Virtual disks of a datastore that keeps objects (vSAN, vVols), where no file of a disk can be written: by a lease.

    1  ImportVApp           a VM that is never powered on, with one disk, thin
    2  POST to its host     the disk, as a streamOptimized VMDK
    3  HttpNfcLeaseComplete
    4  CopyVirtualDisk_Task from the VM's directory to the disk's place
    5  Destroy_Task         the VM, with its disk

The VM is in the VCH's folder, marked as a clone that is nobody's: what a crash leaves is removed by the next port
layer, with the disk in it (inventory_load.py). That is why the disk is copied and not moved: at no moment is there one
that neither a VM nor the directory of what is on its way would take with it.

Facts: govmomi, vmdk/import.go; that the specification of the VM may be one's own, without OVF: OpenStack Nova's driver
for vSphere, images.py. docs/adr/0008 says why only here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pyVmomi import vim

from portlayer.drivers.uninterrupted import uninterrupted
from portlayer.drivers.vsphere import extra_config, operations, removal, vmdk
from portlayer.drivers.vsphere.files import Files, Place
from portlayer.drivers.vsphere.leftovers import Leftovers
from portlayer.drivers.vsphere.nfc_lease import Lease
from portlayer.drivers.vsphere.session import Session
from portlayer.drivers.vsphere.stream_vmdk import StreamVmdk
from portlayer.drivers.vsphere.upload import AgainError, Folder, Progress
from portlayer.drivers.vsphere.vmdk import Disks
from portlayer.errors import AlreadyExistsError, DriverError, NotFoundError

IMPORT_NAME: Final = "vch-import-"
_KIB, _MIB = 1 << 10, 1 << 20
# Further leases that are tried before it is given up: they end with sessions, and hosts go away.
_RETRIES = 2
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImportSite:
    """Where VMs are made for as long as a disk is sent. `choose_host`: gives None where vSphere does (hosts.py)."""

    pool: Any
    folder: Any
    choose_host: Callable[[], Awaitable[Any]]


class ImportedDisks(Disks):
    """As Disks, but for what takes files: disks come by leases, and are looked for by the datastore's browser."""

    def __init__(self, session: Session, place: Place, files: Files, folder: Folder, site: ImportSite) -> None:
        super().__init__(session, place, files, folder)
        self._site = site
        self._leftovers = Leftovers("the VM", self._remove_vm)

    async def make(self, path: str, image: Path, *, on_progress: Progress | None = None, verify: bool = False) -> None:
        """As Disks.make. `verify` adds nothing: a disk cannot be read back, and what its host received is compared."""
        what = f"uploading {path}"
        try:
            disk = await asyncio.to_thread(StreamVmdk, image)
        except OSError as error:
            raise DriverError(f"uploading {image}: {error}") from error
        await self._leftovers.try_again()
        for delay in (*self._session.delays_s[-_RETRIES:], None):
            try:
                async with self._imported(image, disk, on_progress, what) as source:
                    return await self._copy(source, path)
            except (AgainError, AlreadyExistsError) as error:
                if delay is None:
                    raise DriverError(f"{what}: {error}") from error
                _log.info("%s: %s; beginning again in %g s", what, error, delay)
            await self._session.pause(delay)
            await self.remove(path)  # a copy whose answer was lost
        raise AssertionError("the last attempt raises")

    async def remove_directory(self, path: str) -> None:
        """Disks first: with their descriptors alone their objects would stay."""
        for name in vmdk.disk_names(entry.name for entry in await self._files.entries(path)):
            await self.remove(f"{path}/{name}{vmdk.SUFFIX}")
        await self._files.remove(path)

    async def exists(self, path: str) -> bool:
        return await self._info(path) is not None

    async def size(self, path: str) -> int | None:
        info = await self._info(path)
        if info is None:
            return None
        if info.capacityKb is None:
            raise DriverError(f"vSphere does not say how large {self._place.path(path)} is")
        return int(info.capacityKb) * _KIB

    @contextlib.asynccontextmanager
    async def _imported(
        self, image: Path, disk: StreamVmdk, on_progress: Progress | None, what: str
    ) -> AsyncIterator[str]:
        """The path, as vSphere writes it, of the disk of a VM that is there meanwhile."""
        name = f"{IMPORT_NAME}{secrets.token_hex(8)}"
        leases: list[Lease] = []

        async def begin() -> None:
            spec = vim.vm.VmImportSpec(configSpec=self._vm(name, disk.capacity))
            args = (spec, self._site.folder, await self._site.choose_host())
            made = await self._session.call(self._site.pool.ImportVApp, *args, what=what)
            leases.append(Lease(self._session, made, what))

        try:
            try:
                await uninterrupted(begin())
                info = await leases[0].ready()
                await leases[0].send(info, image, disk, on_progress)
                await leases[0].complete()
            except BaseException:
                for lease in leases:
                    await uninterrupted(lease.abort())
                raise
            yield await self._disk_of(info.entity, name)
        finally:
            await uninterrupted(self._leftovers.remove(name))

    def _vm(self, name: str, capacity: int) -> vim.vm.ConfigSpec:
        controller = vim.vm.device.VirtualLsiLogicController(key=-1, busNumber=0, sharedBus="noSharing")
        backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName="", diskMode="persistent", thinProvisioned=True, datastore=self._place.datastore
        )
        disk = vim.vm.device.VirtualDisk(
            key=-2, controllerKey=-1, unitNumber=0, capacityInKB=capacity // _KIB, backing=backing
        )
        add: Any = vim.vm.device.VirtualDeviceSpec
        return vim.vm.ConfigSpec(
            name=name,
            guestId="otherLinux64Guest",
            numCPUs=1,
            memoryMB=4,
            annotation="A virtual container host makes a disk by it. It is never powered on, and goes by itself.",
            files=vim.vm.FileInfo(vmPathName=f"[{self._place.name}]"),
            extraConfig=[vim.option.OptionValue(key=extra_config.CLONE, value=IMPORT_NAME)],
            deviceChange=[
                add(operation="add", device=controller),
                add(operation="add", fileOperation="create", device=disk),
            ],
        )

    async def _disk_of(self, vm: Any, name: str) -> str:
        try:
            devices = await operations.devices(self._session, vm, name)
        except NotFoundError as error:
            raise AgainError(str(error)) from error
        disk: Any = next((one for one in devices if isinstance(one, vim.vm.device.VirtualDisk)), None)
        if disk is None:
            raise DriverError(f"the VM {name} has no disk")
        return str(disk.backing.fileName)

    async def _remove_vm(self, name: str) -> None:
        """By its name, which no other VM has: an import whose answer was lost has made one as well."""
        folder, path = self._site.folder, "childEntity"
        children = (await self._session.read([folder], [path])).get(folder, {}).get(path, ())
        vms = await self._session.read([one for one in children if isinstance(one, vim.VirtualMachine)], ["name"])
        for vm, known in vms.items():
            if known.get("name") == name:
                await removal.remove(self._session, vm, name, self._place.datacenter)

    async def _copy(self, source: str, path: str) -> None:
        """`source` as vSphere writes it. AlreadyExistsError after an attempt whose answer was lost: it may go on."""
        where, target = self._place.datacenter, self._place.path(path)
        await self._session.run(
            self._manager.CopyVirtualDisk_Task, source, where, target, where, None, False, what=f"making {target}"
        )

    async def _info(self, path: str) -> Any | None:
        """What the datastore's browser tells of a disk; None when there is none."""
        browser = vim.host.DatastoreBrowser
        directory, _, name = path.rpartition("/")
        details = browser.VmDiskQuery.Details(diskType=False, capacityKb=True, hardwareVersion=False)
        wanted = browser.FileInfo.Details(fileType=True, fileSize=False, modification=False, fileOwner=False)
        spec = browser.SearchSpec(query=[browser.VmDiskQuery(details=details)], details=wanted, matchPattern=[name])
        return next(iter(await self._files.search(directory, spec)), None)
