"""A VCH's place on the simulator, and what its tests of the driver make there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from pyVmomi import vim
from vsphere_front import Front
from vsphere_machines import DELAYS_S
from vsphere_plain import Plain, by_name
from vsphere_ports import held_port
from vsphere_simulator import HOST
from vsphere_waiting import everything_below

from portlayer.drivers.base import MachineChange, MachineSpec, Shape
from portlayer.drivers.vsphere import site_driver
from portlayer.drivers.vsphere.driver import VsphereDriver
from portlayer.drivers.vsphere.endpoint import Credentials, Endpoint
from portlayer.drivers.vsphere.settings import SerialSettings, VsphereSettings
from portlayer.identity import Identity

MIB = 1 << 20
IMAGE = "sha256-" + "1" * 64


class Site:
    """A VCH's place on the simulator: what outlives a port layer."""

    def __init__(self, front: Front, root: Path, plain: Plain) -> None:
        self.front = front
        self.root = root
        self.plain = plain
        self.who = Identity(secrets.token_hex(16), "lab", 0)
        self.told: list[MachineChange] = []
        self._held: list[socket.socket] = []
        self.serial_port = self.another_port()
        self.container_networks: tuple[tuple[str, str], ...] = ()
        self.affinity_group = False
        self.compute_resource: str | None = None
        self.guest_image = root / "guest"
        make_guest_image(self.guest_image)

    def another_port(self) -> int:
        """One that a concentrator can have again and again."""
        self._held.append(held_port())
        return int(self._held[-1].getsockname()[1])

    def close(self) -> None:
        for held in self._held:
            held.close()

    @contextlib.asynccontextmanager
    async def driver(self) -> AsyncIterator[VsphereDriver]:
        """A port layer's life."""
        simulator = self.front.simulator
        settings = VsphereSettings(
            Endpoint(HOST, self.front.port, thumbprint=simulator.thumbprint),
            Credentials(simulator.user, simulator.password),
            datastore="LocalDS_0",
            bridge_network="VM Network",
            container_networks=self.container_networks,
            affinity_group=self.affinity_group,
            compute_resource=self.compute_resource,
            serial=SerialSettings(HOST, self.serial_port),
        )
        async with site_driver.opened(settings, self.who, self.root / "state", self.guest_image) as (driver, store):
            if not await store.has_image_disk(IMAGE):
                disk = self.root / "image.squashfs"
                disk.write_bytes(secrets.token_bytes(MIB))
                await store.put_image_disk(IMAGE, disk)
            driver.around.session.delays_s = DELAYS_S
            driver.on_change(self.told.append)
            yield driver

    def vm(self, name: str) -> Any:
        """The VM of that name, past front and driver."""
        return self.plain.content.searchIndex.FindByInventoryPath(f"/DC0/vm/{self.folder}/{name}")

    def names(self) -> list[str]:
        return sorted(by_name(self.plain.content.searchIndex.FindByInventoryPath(self.path).childEntity))

    @property
    def cluster(self) -> Any:
        return self.plain.content.searchIndex.FindByInventoryPath("/DC0/host/DC0_C0")

    def ids(self) -> set[str]:
        """Of the VMs of the VCH, those that just go among them."""
        return {vm._moId for vm in self.plain.content.searchIndex.FindByInventoryPath(self.path).childEntity}

    def group(self) -> set[str]:
        """The ids of the VMs in the affinity group."""
        groups = self.cluster.configurationEx.group
        return {vm._moId for group in groups if group.name == self.folder for vm in group.vm}

    def has_moved(self, name: str) -> bool:
        """Beside a template there is one VM, of that name: the clone has it, and the VM that had it is gone."""
        names = self.names()
        return name in names and len(names) == 2

    @property
    def folder(self) -> str:
        return f"lab-{self.who.id[:12]}"

    @property
    def path(self) -> str:
        return f"/DC0/vm/{self.folder}"

    def files(self) -> set[str]:
        """Everything on the datastore that is a VM's or a container's."""
        root = self.front.simulator.datastore_dir()
        kept = (f"{self.folder}/images", f"{self.folder}/empties", f"{self.folder}/guest", f"{self.folder}/incoming")
        found = {str(path.relative_to(root)) for path in everything_below(root) if path.is_file()}
        return {path for path in found if not path.startswith(kept)}


def make_guest_image(directory: Path, kind: bytes = b"first") -> None:
    directory.mkdir(exist_ok=True)
    sizes = {}
    for name in ("vmlinuz", "initramfs", "guest.iso"):
        (directory / name).write_bytes(kind * 1000)
        sizes[name] = (directory / name).stat().st_size
    iso = hashlib.sha256((directory / "guest.iso").read_bytes()).hexdigest()
    manifest = {"digest": "sha256:" + "ab" * 32, "kernel_version": "6.1", "sizes": sizes}
    (directory / "manifest.json").write_text(json.dumps(manifest | {"iso": {"file": "guest.iso", "sha256": iso}}))


def spec(name: str = "web", **other: Any) -> MachineSpec:
    return MachineSpec(secrets.token_hex(32), name, 512 * MIB, 2, IMAGE, 64 * MIB, "nginx:latest", **other)


async def make_template(driver: VsphereDriver) -> Any:
    assert driver.cloning is not None
    shape = driver.cloning.shape_for(512 * MIB, 2)
    assert shape == Shape(512 * MIB, 2)
    parent = await driver.cloning.boot_parent(shape)
    return await parent.freeze(7)


def writable(vm: Any) -> str:
    """Where the writable disk of a VM is."""
    disks = [one for one in vm.config.hardware.device if isinstance(one, vim.vm.device.VirtualDisk)]
    return next(str(disk.backing.fileName) for disk in disks if disk.unitNumber == 1)
