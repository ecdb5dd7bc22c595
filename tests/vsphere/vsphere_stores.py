"""A VCH's datastore for one test, of either kind, and what the test sees of it on this machine.

FILES     disks are files, written over HTTPS
OBJECTS   disks are objects, sent by leases (vSAN)
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vsphere_vsan
from pyVmomi import vim
from vsphere_simulator import Simulator
from vsphere_waiting import until

from portlayer.drivers.vsphere.datastore import VsphereDatastore
from portlayer.drivers.vsphere.imported_disks import ImportSite
from portlayer.drivers.vsphere.session import Session


@dataclass(frozen=True)
class Kind:
    """`datastore` is its name, `upload` the method by which disks are sent, `simulator` the fixture that has one."""

    name: str
    datastore: str
    directory: str
    upload: str
    simulator: str

    def __str__(self) -> str:
        return self.name


FILES = Kind("files", "LocalDS_0", "vch-of tests/one", "PUT", "plain_simulator")
OBJECTS = Kind("objects", vsphere_vsan.DATASTORE, "vch-of tests", "POST", "vsan_simulator")


class Store:
    """The directory of one VCH. `opened` gives it to a port layer, `close` looks whether everything goes."""

    def __init__(self, kind: Kind, simulator: Simulator, session: Session, tmp_path: Path) -> None:
        self.kind = kind
        self.top = vsphere_vsan.files(simulator) if kind is OBJECTS else simulator.datastore_dir(kind.datastore)
        self.session = session
        self._tmp_path = tmp_path

    @property
    def root(self) -> Path:
        """The VCH's directory."""
        if self.kind is OBJECTS:
            return next(self.top.glob("*/images")).parent  # the only one that has images
        return self.top / self.kind.directory

    def work_dir(self, name: str = "work") -> Path:
        return self._tmp_path / name

    async def at(self, path: str) -> Any:
        """What has that inventory path."""
        find = self.session.content.searchIndex.FindByInventoryPath
        return await self.session.call(find, path, what="looking")

    async def unopened(self, work_dir: str = "work", **how: Any) -> VsphereDatastore:
        site = ImportSite(await self.at("/DC0/host/DC0_C0/Resources"), await self.at("/DC0/vm"), _any_host)
        place = await self.at("/DC0"), await self.at(f"/DC0/datastore/{self.kind.datastore}")
        how = {"import_site": site} | how
        return VsphereDatastore(self.session, *place, self.kind.directory, self.work_dir(work_dir), **how)

    @contextlib.asynccontextmanager
    async def opened(self, work_dir: str = "work", **how: Any) -> AsyncIterator[VsphereDatastore]:
        datastore = await self.unopened(work_dir, **how)
        await datastore.open()
        try:
            yield datastore
        finally:
            await datastore.close()

    def names(self, directory: str) -> list[str]:
        return sorted(file.name for file in (self.root / directory).iterdir())

    def left(self) -> list[Path]:
        """What is still on its way."""
        return list((self.root / "incoming").iterdir())

    async def disk(self, name: str) -> bytes:
        """The bytes of a disk: as QEMU reads it, where the simulator's descriptor says how."""
        flat = self.root / f"{name}-flat.vmdk"
        if self.kind is OBJECTS:
            return flat.read_bytes()
        out = self._tmp_path / "read"
        command = ["qemu-img", "convert", "-f", "vmdk", "-O", "raw", str(self.root / f"{name}.vmdk"), str(out)]
        await asyncio.to_thread(subprocess.run, command, check=True)
        return out.read_bytes()

    async def check(self) -> None:
        """Nothing is on its way, and nothing of ours is but the one directory."""
        assert not self.left()
        if self.kind is OBJECTS:
            assert not await self.machines()
            # VMs had directories too, which the simulator removes by tasks that Destroy_Task does not wait for.
            await until(lambda: len(list(self.top.iterdir())) == 1)

    async def machines(self) -> list[Any]:
        """VMs of imports."""
        folder = await self.at("/DC0/vm")
        found = (await self.session.read([folder], ["childEntity"]))[folder].get("childEntity", ())
        return [one for one in found if isinstance(one, vim.VirtualMachine)]

    async def close(self) -> None:
        async with self.opened() as datastore:
            await datastore.remove_all()
        if self.kind is OBJECTS:
            await until(lambda: not list(self.top.iterdir()))


async def _any_host() -> None:
    """The simulator chooses."""
