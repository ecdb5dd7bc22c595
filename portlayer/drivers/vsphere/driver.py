"""The machines of one VCH on vSphere: implements MachineDriver.

All VMs of the VCH are in one folder of its own, and that folder is the truth: what is in it is found, whoever made it.
A container whose VM an administrator moves out of it stays what it is. What happens to VMs behind the VCH's back is
told by changes.py.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from portlayer.drivers.base import Capacity, Cloning, DiskNames, Machine, MachineChange, MachineSpec
from portlayer.drivers.guest_image import GuestImage
from portlayer.drivers.uninterrupted import remotely, remotely_made
from portlayer.drivers.vsphere import (
    config_spec,
    extension,
    extra_config,
    inventory_load,
    namespaces,
    operations,
    placement,
    vmdk,
)
from portlayer.drivers.vsphere.background import Background
from portlayer.drivers.vsphere.changes import Changes, removed
from portlayer.drivers.vsphere.cloning import CLONE_NAME, VsphereCloning, is_supported
from portlayer.drivers.vsphere.creations import Creation, Creations
from portlayer.drivers.vsphere.datastore import VsphereDatastore
from portlayer.drivers.vsphere.event_source import EventLog
from portlayer.drivers.vsphere.extra_config import Kept
from portlayer.drivers.vsphere.files import Files, Place
from portlayer.drivers.vsphere.inventory_load import Found
from portlayer.drivers.vsphere.machine import VsphereMachine, first_uuid
from portlayer.drivers.vsphere.placement import Placement
from portlayer.drivers.vsphere.roster import Roster
from portlayer.drivers.vsphere.serial import Concentrator
from portlayer.drivers.vsphere.session import Session
from portlayer.drivers.vsphere.vch_surroundings import VchSurroundings
from portlayer.drivers.vsphere.virtual_machines import VirtualMachines
from portlayer.errors import AlreadyExistsError, NotFoundError, PortLayerError

_log = logging.getLogger(__name__)


class VsphereDriver:
    """Implements MachineDriver; session, concentrator and datastore are open, and are the caller's to close.

    `state_dir` has the port layer's own files for each machine: logs. `disk_place` is the datastore of the containers,
    where their writable disks are; `proxy_uri` is where serial ports dial.
    """

    def __init__(
        self,
        session: Session,
        placement: Placement,
        datastore: VsphereDatastore,
        lines: Concentrator,
        guest_image: GuestImage,
        *,
        disk_place: Place,
        proxy_uri: str,
        state_dir: Path,
        vch_name: str,
        vm_name_template: str,
    ) -> None:
        self._session = session
        self._placement = placement
        self._datastore = datastore
        self._disk_place = disk_place
        self._lines = lines
        self._guest_image = guest_image
        self._template = vm_name_template
        self._roster = Roster(state_dir.absolute() / "machines")
        self._background = Background()
        notes = state_dir.absolute() / "creations"
        self._creations = Creations(session, placement.folder, disk_place, notes, self._background)
        self._changes = Changes(session, self._roster, self._background, self._forget)
        self._vms = VirtualMachines(session, placement.scope, self._changes.seen, self._background.later)
        self._events = EventLog(placement.scope, self._changes.happened)
        # What machines, templates and clones have from here.
        self.around = VchSurroundings(
            *(session, placement, datastore, lines, guest_image),
            vms=self._vms,
            roster=self._roster,
            background=self._background,
            proxy_uri=proxy_uri,
            vch_name=vch_name,
        )
        self._cloning = VsphereCloning(self.around)
        self._capacity: Capacity | None = None

    @property
    def name(self) -> str:
        return "vsphere"

    @property
    def disk_names(self) -> DiskNames:
        return self.around.disk_names

    @property
    def networks(self) -> Mapping[str, str]:
        return {name: f"port group {group.path}" for name, group in self._placement.networks.items()}

    @property
    def cloning(self) -> Cloning | None:
        return self._cloning if is_supported(self._session) else None

    def on_change(self, listener: Callable[[MachineChange], None]) -> None:
        self._changes.listen(listener)

    # --- the driver's own life

    async def open(self) -> None:
        await asyncio.to_thread(self._roster.prepare)
        self.around.managed_by = await extension.register(self._session, self._placement.folder)
        root = await namespaces.ensure(self._session, self._disk_place, self._placement.name)
        self._disk_directory = f"{root}/disks"
        await Files(self._session, self._disk_place).make_directory(self._disk_directory)
        await self._session.updates.add(self._vms)
        await self._load()
        await self._session.updates.add(self._events)

    async def close(self) -> None:
        await self.around.performance.close()
        await self._events.close(self._session)
        await self._background.close()

    async def dismantle(self) -> Sequence[str]:
        # Looked for, since one whose making was broken off a moment ago is known to nobody.
        contents = await inventory_load.load(self._session, self._placement.scope, self._placement.own_pool, {})
        for found, _ in (*contents.templates, *contents.leftovers):
            await operations.quietly(self.around.remove(found.vm, found.name), f"removing {found.name}")
        return await placement.dismantle(self._session, self._placement)

    async def _load(self) -> None:
        """What is in the folder, or was. A VM that cannot be read is left alone, for an administrator to see."""
        place, expected = self._placement, await asyncio.to_thread(self._roster.expected)
        await self._creations.settle()
        contents = await inventory_load.load(self._session, place.scope, place.own_pool, expected)
        for found, kept in contents.containers:
            self._lines.admit(found.vc_uuid, kept.token)
            self._add(self._machine(found, kept))
        self._vms.follow(contents.moved)
        for found, why in contents.leftovers:
            _log.info("removing the VM %s: %s", found.name, why)
            await operations.quietly(self.around.remove(found.vm, found.name), f"removing {found.name}")
        for found, kept in contents.containers:
            if found.name.startswith(CLONE_NAME):  # it moved, and the port layer ended before the VM got its name
                name = config_spec.display_name(self._template, kept.spec.name, kept.spec.id)
                machine = self._roster.of(found.vm)
                if machine is not None:
                    self._background.later(machine.rename_as(name), f"naming the VM {found.name}")
        for found, values in contents.templates:
            await operations.quietly(self._cloning.load(found, values), f"taking up the template {found.name}")
        if not contents.is_partial:  # or what a container needs would go that comes back: its logs, its guest image
            made = {*expected, *(kept.spec.id for _, kept in contents.containers)}
            self._background.later(self._creations.sweep(made), "removing what creations left")
            await asyncio.to_thread(self._roster.remove_stray_directories)
            self._background.later(self._remove_unused_isos(), "removing guest images that no VM boots")

    async def _remove_unused_isos(self) -> None:
        """A VM has the guest image that it booted last in its CD-ROM until it boots again."""
        used = {machine.guest_iso for machine in self._roster.all()}
        for digest in await self._datastore.guest_isos() - {self._guest_image.iso_digest}:
            if not any(digest in path for path in used):
                await self._datastore.remove_guest_iso(digest)

    # --- machines

    async def create(self, spec: MachineSpec, record: bytes) -> Machine:
        if self._roster.get(spec.id) is not None:
            raise AlreadyExistsError(f"machine {spec.id} exists")
        return await remotely_made(self._create(spec, record), lambda made: self._destroy(made.id))

    async def list(self) -> list[Machine]:
        return [*self._roster.all()]

    async def destroy(self, machine: Machine) -> None:
        await remotely(self._destroy(machine.id))

    async def _create(self, spec: MachineSpec, record: bytes) -> Machine:
        try:
            return await self._make(spec, record)
        except NotFoundError as error:
            _log.info("%s: what is needed for it is looked for again, and brought anew where it is gone", error)
            self._datastore.look_again()
            return await self._make(spec, record)

    async def _make(self, spec: MachineSpec, record: bytes) -> Machine:
        """NotFoundError also when somebody has removed a file that was there: a shared disk, the guest image."""
        name = config_spec.display_name(self._template, spec.name, spec.id)
        vc_uuid = first_uuid(spec.id)
        kept = Kept(spec, secrets.token_hex(16), await self.around.boot())
        disk = f"{self._disk_directory}/{spec.id}{vmdk.SUFFIX}"
        disks = config_spec.Disks(
            image=await self.around.image_disk(spec.image_disk),
            empty=await self._datastore.empty_disk(spec.writable_disk_bytes),
            writable=self._disk_place.path(disk),
        )
        values = extra_config.fixed(spec, kept.token) | extra_config.boot(kept.boot) | extra_config.record(record)
        config = self.around.described(spec)
        hardware = self.around.hardware(kept.boot, kept.token, spec.networks)
        config_spec.describe(config, spec, name, hardware, disks, vc_uuid, values)
        await self._creations.begin(spec.id, Creation(vc_uuid, self._disk_place.name, disk, directory=name))
        # Known before the VM is: it dials in as soon as it runs.
        self._lines.admit(vc_uuid, kept.token)
        try:
            vm = await self.around.make(config, f"creating the VM {name}")
            machine = self._machine(Found(vm, name, vc_uuid), kept, record)
            self._add(machine)
        except BaseException as error:
            self._lines.dismiss(vc_uuid)
            if isinstance(error, PortLayerError):
                await self._creations.failed(spec.id, error)
            raise
        await self._creations.succeeded(spec.id)
        return machine

    async def _destroy(self, machine_id: str) -> None:
        machine = self._roster.get(machine_id)
        if machine is None:
            return
        await machine.remove()
        self._forget(machine)
        await removed(machine.directory)

    def _machine(self, found: Found, kept: Kept, record: bytes | None = None) -> VsphereMachine:
        directory = self._roster.directory_of(kept.spec.id)
        return VsphereMachine(self.around, found.vm, found.name, found.vc_uuid, kept, directory, record)

    def _add(self, machine: VsphereMachine) -> None:
        self._roster.add(machine)
        self.around.into_group(machine.vm)

    def _forget(self, machine: VsphereMachine) -> None:
        if self._roster.get(machine.id) is machine:
            self.around.forget(machine)

    # --- what people are told

    async def capacity(self) -> Capacity:
        paths = ["hardware.cpuInfo.numCpuThreads", "hardware.memorySize"]
        try:
            found = (await self._session.read(self._placement.site.hosts, paths)).values()
        except PortLayerError:
            if self._capacity is None:
                raise
            return self._capacity  # as it was: `docker info` does not fail because vCenter is away
        memory = [int(host.get(paths[1], 0)) for host in found]
        self._capacity = Capacity(
            max((int(host.get(paths[0], 1)) for host in found), default=1),
            sum(memory),
            max(memory, default=0) if all(memory) else 0,  # one that does not say may be the largest
        )
        return self._capacity

    async def info(self) -> Mapping[str, str]:
        site = self._placement.site
        return {
            "vSphere": str(self._session.content.about.fullName),
            "Endpoint": self._session.endpoint.host,
            "Compute resource": site.compute.path,
            "Datastore": site.datastore.name,
            "Image datastore": site.image_datastore.name,
            "VM folder": self._placement.name,
            "Bridge network": site.bridge.name if site.bridge else "none",
            "Container networks": ", ".join(sorted(site.container_networks)) or "none",
            "DRS": "on" if site.drs_enabled else "off",
            "Instant clone": "on" if self.cloning else "off, vCenter 7.0 or later is needed",
            "Agent channel": "serial",
            "Agent channel reason": f"network serial ports through the concentrator at {self.around.proxy_uri}",
            "Guest image": self._guest_image.digest,
            "Guest kernel": self._guest_image.kernel_version,
        }
