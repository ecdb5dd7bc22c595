"""The machines of one VCH on vSphere: implements MachineDriver.

All VMs of the VCH are in one folder of its own, and that folder is the truth: what is in it is found, whoever made it.
A container whose VM an administrator moves out of it stays what it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import shutil
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyVmomi import vim

from portlayer.drivers.base import (
    Capacity,
    Change,
    Cloning,
    DiskNames,
    Machine,
    MachineChange,
    MachineSpec,
    MachineUsage,
    PowerState,
)
from portlayer.drivers.guest_image import GuestImage
from portlayer.drivers.uninterrupted import remotely
from portlayer.drivers.vsphere import (
    config_spec,
    extension,
    extra_config,
    hosts,
    inventory,
    inventory_load,
    namespaces,
    once,
    operations,
    placement,
    virtual_machines,
    vmdk,
)
from portlayer.drivers.vsphere.cloning import CLONE_NAME, VsphereCloning, is_supported
from portlayer.drivers.vsphere.config_spec import Hardware
from portlayer.drivers.vsphere.datastore import VsphereDatastore
from portlayer.drivers.vsphere.event_source import EventLog
from portlayer.drivers.vsphere.extra_config import Boot, Kept
from portlayer.drivers.vsphere.faults import caused_by, words
from portlayer.drivers.vsphere.files import Files, Place
from portlayer.drivers.vsphere.inventory_load import Found
from portlayer.drivers.vsphere.machine import VsphereMachine, first_uuid
from portlayer.drivers.vsphere.performance import Performance
from portlayer.drivers.vsphere.placement import Placement
from portlayer.drivers.vsphere.power_states import PowerStates
from portlayer.drivers.vsphere.serial import Concentrator
from portlayer.drivers.vsphere.session import Session
from portlayer.drivers.vsphere.virtual_machines import VirtualMachines
from portlayer.errors import AlreadyExistsError, DriverError, NotFoundError, PortLayerError

_ON = "poweredOn"
_VAPP = "parentVApp"
_KINDS = {_ON: Change.POWERED_ON, "poweredOff": Change.POWERED_OFF, "suspended": Change.SUSPENDED}
# Between questions to a vCenter that does not answer, seconds; each of them has been tried for some time.
_ASK_AGAIN_S = 5.0
# In a machine's directory: its VM's instanceUuid, by which it is found when it was moved while no port layer was there.
_UUID_FILE = "instance-uuid"
# What is done in the background has this long to end before the connection is closed, seconds.
_CLOSE_S = 3.0
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
        self._proxy_uri = proxy_uri
        self._lines = lines
        self._guest_image = guest_image
        self._directories = state_dir.absolute() / "machines"
        self._vch_name = vch_name
        self._template = vm_name_template
        self._vms = VirtualMachines(session, placement.scope, self._changed, self.later)
        self._power = PowerStates(session)
        self._events = EventLog(placement.scope, self._happened)
        self._performance = Performance(session, self._runs)
        self._machines: dict[str, VsphereMachine] = {}
        self._by_vm: dict[str, VsphereMachine] = {}  # by the ids that vSphere gave the VMs
        self._cloning = VsphereCloning(self)
        self._listener: Callable[[MachineChange], None] | None = None
        self._capacity: Capacity | None = None
        self._managed_by: vim.ext.ManagedByInfo | None = None
        self._background: set[asyncio.Task[None]] = set()

    @property
    def name(self) -> str:
        return "vsphere"

    @property
    def disk_names(self) -> DiskNames:
        return DiskNames(f"scsi:{config_spec.IMAGE_UNIT}", f"scsi:{config_spec.WRITABLE_UNIT}")

    @property
    def networks(self) -> Mapping[str, str]:
        return {name: f"port group {group.path}" for name, group in self._placement.networks.items()}

    @property
    def cloning(self) -> Cloning | None:
        return self._cloning if is_supported(self._session) else None

    # --- MachineDriver

    async def open(self) -> None:
        await asyncio.to_thread(self._directories.mkdir, parents=True, exist_ok=True)
        self._managed_by = await extension.register(self._session, self._placement.folder)
        root = await namespaces.ensure(self._session, self._disk_place, self._placement.name)
        self._disk_directory = f"{root}/disks"
        await Files(self._session, self._disk_place).make_directory(self._disk_directory)
        await self._session.updates.add(self._vms)
        await self._load()
        await self._session.updates.add(self._events)
        await asyncio.to_thread(self._remove_stray_directories)
        self.later(self._remove_unused_isos(), "removing guest images that no VM boots")

    async def close(self) -> None:
        """What is left then ends with the session, and is found by the next port layer."""
        await self._performance.close()
        await self._events.close(self._session)
        if self._background:
            await asyncio.wait(self._background, timeout=_CLOSE_S)

    async def create(self, spec: MachineSpec, record: bytes) -> Machine:
        if spec.id in self._machines:
            raise AlreadyExistsError(f"machine {spec.id} exists")
        try:
            return await remotely(self._create(spec, record))
        except asyncio.CancelledError:
            if spec.id in self._machines:
                await operations.quietly(remotely(self._destroy(spec.id)), "removing a VM that nobody waits for")
            raise

    async def list(self) -> list[Machine]:
        return list(self._machines.values())

    async def destroy(self, machine: Machine) -> None:
        await remotely(self._destroy(machine.id))

    def on_change(self, listener: Callable[[MachineChange], None]) -> None:
        self._listener = listener

    async def capacity(self) -> Capacity:
        paths = ["hardware.cpuInfo.numCpuThreads", "hardware.memorySize"]
        try:
            found = (await self._session.read(self._placement.site.hosts, paths)).values()
        except PortLayerError:
            if self._capacity is None:
                raise
            return self._capacity  # as it was: `docker info` does not fail because vCenter is away
        self._capacity = Capacity(
            max((int(host.get(paths[0], 1)) for host in found), default=1),
            sum(int(host.get(paths[1], 0)) for host in found),
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
            "Agent channel reason": f"network serial ports through the concentrator at {self._proxy_uri}",
            "Guest image": self._guest_image.digest,
            "Guest kernel": self._guest_image.kernel_version,
        }

    async def dismantle(self) -> Sequence[str]:
        # Looked for, since one whose making was broken off a moment ago is known to nobody.
        contents = await inventory_load.load(self._session, self._placement.scope, self._placement.own_pool, {})
        for found, _ in (*contents.templates, *contents.leftovers):
            await operations.quietly(self.remove(found.vm, found.name), f"removing {found.name}")
        return await placement.dismantle(self._session, self._placement)

    # --- what machines, templates and clones need

    @property
    def session(self) -> Session:
        return self._session

    @property
    def vms(self) -> VirtualMachines:
        return self._vms

    @property
    def lines(self) -> Concentrator:
        return self._lines

    async def boot(self) -> Boot:
        image = self._guest_image
        if image.iso is None:
            raise DriverError(
                f"the guest image in {image.directory} has no ISO: make it anew with photon-image/build.py"
            )
        return Boot(await self._datastore.guest_iso(image.iso, image.iso_digest), self._proxy_uri)

    async def power_state(self, vm: Any, name: str) -> PowerState:
        return await self._power.of(vm, name)

    async def usage(self, vm: Any) -> MachineUsage | None:
        return await self._performance.usage(vm)

    async def power_on(self, vm: Any, name: str) -> None:
        """Through the data centre where DRS is to choose the host."""
        what = f"powering on the VM {name}"
        try:
            if self._placement.drs_enabled:
                await self._power_on_by_drs(vm, what)
            else:
                await self._session.run(vm.PowerOnVM_Task, what=what)
        except PortLayerError as error:
            if not caused_by(error, vim.fault.InvalidPowerState):
                raise

    async def remove(self, vm: Any, name: str) -> None:
        await operations.remove(self._session, vm, name, self._placement.datacenter)

    async def wait_off(self, vm: Any) -> None:
        """However long vCenter is away: a container that nobody watches would run for ever."""
        while True:
            change = self._vms.change(vm)
            # That it is off may have been told before a power-on of ours, so that is looked up. Where it is known to be
            # on nobody has to look: what ends that will be told.
            if self._vms.known(vm, virtual_machines.POWER) != _ON:
                try:
                    if await self._power.of(vm, "") is PowerState.OFF:
                        return
                except NotFoundError:
                    return
                except PortLayerError as error:
                    _log.debug("whether a VM is off is not known: %s", error)
                    await self._session.pause(_ASK_AGAIN_S)
                    continue
            await change.wait()

    def is_now_of(self, machine: VsphereMachine, before: Any = None) -> None:
        if before is not None:
            self._by_vm.pop(before._moId, None)
        self._by_vm[machine.vm._moId] = machine
        self.into_group(machine.vm)
        try:
            (machine.directory / _UUID_FILE).write_text(machine.vc_uuid)
        except OSError as error:
            _log.warning("if %s is moved, the next port layer may not find it: %s", machine.location, error)

    def was_moved(self, vm: Any) -> bool:
        return self._vms.known(vm, virtual_machines.PARENT) not in (None, self._placement.folder)

    async def image_disk(self, name: str) -> config_spec.Parent:
        size = await self._datastore.image_disk_bytes(name)
        return config_spec.Parent(self._datastore.image_path(name), vmdk.whole(size))

    def described(self, spec: MachineSpec) -> vim.vm.ConfigSpec:
        about = vim.vm.ConfigSpec(managedBy=self._managed_by)
        about.annotation = (
            f"Container {spec.name} of the virtual container host {self._vch_name}\n"
            f"id: {spec.id}\nimage: {spec.image_name or spec.image_disk}\nowner: {spec.owner or 'not known'}\n"
            "Belongs to its virtual container host: docker changes and removes it."
        )
        return about

    def hardware(self, boot: Boot, token: str, networks: Sequence[str] = ()) -> Hardware:
        """Of a VM without disks."""
        return Hardware(self._placement.site.datastore.name, boot, token, self.card_backings(networks))

    def card_backings(self, networks: Sequence[str]) -> tuple[Any, ...]:
        known = self._placement.networks
        if missing := [name for name in networks if name not in known]:
            raise NotFoundError(
                f"this host has no network {', '.join(missing)} any more: give it again by --bridge-network or"
                " --container-network"
            )
        return tuple(known[name].backing for name in networks)

    def clone_location(self) -> vim.vm.RelocateSpec:
        return vim.vm.RelocateSpec(folder=self._placement.folder, pool=self._placement.resource_pool)

    async def make(self, config: vim.vm.ConfigSpec, what: str) -> Any:
        """A new VM of that name and instanceUuid, made once however often it takes."""
        place, session = self._placement, self._session

        async def create() -> Any:
            host = await hosts.for_new_vm(session, place.site)
            return await session.run(place.folder.CreateVM_Task, config, place.resource_pool, host, what=what)

        async def find() -> Any:
            find, where = session.content.searchIndex.FindByUuid, place.datacenter
            return await session.call(find, where, config.instanceUuid, True, True, what="looking for a VM by its uuid")

        return await once.made(session, create, find, entity=place.folder, name=str(config.name), what=what)

    def into_group(self, vm: Any) -> None:
        """Puts a VM into the affinity group, if there is one."""
        if (group := self._placement.affinity) is not None:
            self.later(group.join(vm), f"putting a VM into the group {group.name}")

    def later(self, work: Coroutine[Any, Any, None], what: str) -> None:
        task = asyncio.create_task(operations.quietly(work, what))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # --- within

    async def _power_on_by_drs(self, vm: Any, what: str) -> None:
        # In a cluster whose DRS only recommends, nothing would be powered on but by an administrator.
        act = vim.option.OptionValue(
            key="OverrideAutomationLevel",
            value=vim.cluster.DrsConfigInfo.DrsBehavior.fullyAutomated,
        )
        result = await self._session.run(self._placement.datacenter.PowerOnMultiVM_Task, [vm], [act], what=what)
        for refused in result.notAttempted or ():
            if not isinstance(refused.fault, vim.fault.InvalidPowerState):
                raise DriverError(f"{what}: {words(refused.fault)}") from refused.fault
        for attempt in result.attempted or ():
            if attempt.task is not None:
                await self._session.tasks.outcome(attempt.task, what)

    async def _create(self, spec: MachineSpec, record: bytes) -> Machine:
        name = config_spec.display_name(self._template, spec.name, spec.id)
        vc_uuid = first_uuid(spec.id)
        kept = Kept(spec, secrets.token_hex(16), await self.boot())
        disks = config_spec.Disks(
            image=await self.image_disk(spec.image_disk),
            empty=await self._datastore.empty_disk(spec.writable_disk_bytes),
            writable=self._disk_place.path(f"{self._disk_directory}/{spec.id}.vmdk"),
        )
        values = extra_config.fixed(spec, kept.token) | extra_config.boot(kept.boot) | extra_config.record(record)
        config = self.described(spec)
        config_spec.describe(
            config, spec, name, self.hardware(kept.boot, kept.token, spec.networks), disks, vc_uuid, values
        )
        # Known before the VM is: it dials in as soon as it runs.
        self._lines.admit(vc_uuid, kept.token)
        try:
            vm = await self._make_with_files(config, f"creating the VM {name}")
            self._add(self._machine(Found(vm, name, vc_uuid), kept, record))
        except BaseException:
            self._lines.dismiss(vc_uuid)
            raise
        return self._machines[spec.id]

    async def _make_with_files(self, config: vim.vm.ConfigSpec, what: str) -> Any:
        """Where somebody has removed a file that was there, the error says so, and the next creation brings it anew."""
        try:
            return await self.make(config, what)
        except NotFoundError:
            self._datastore.look_again()
            raise

    async def _destroy(self, machine_id: str) -> None:
        machine = self._machines.get(machine_id)
        if machine is None:
            return
        await machine.remove()
        self._forget(machine_id)
        await _removed(machine.directory)

    def _add(self, machine: VsphereMachine) -> None:
        self._machines[machine.id] = machine
        self.is_now_of(machine)

    def _forget(self, machine_id: str) -> None:
        machine = self._machines.pop(machine_id, None)
        if machine is None:
            return
        self._by_vm.pop(machine.vm._moId, None)
        self._lines.dismiss(machine.vc_uuid)
        if (group := self._placement.affinity) is not None:
            self.later(group.leave(machine.vm), f"taking a VM out of the group {group.name}")

    async def _load(self) -> None:
        """What is in the folder, or was. A VM that cannot be read is left alone, for an administrator to see."""
        place, expected = self._placement, await asyncio.to_thread(self._expected)
        contents = await inventory_load.load(self._session, place.scope, place.own_pool, expected)
        for found, kept in contents.containers:
            self._lines.admit(found.vc_uuid, kept.token)
            self._add(self._machine(found, kept))
        self._vms.follow(contents.moved)
        for found, why in contents.leftovers:
            _log.info("removing the VM %s: %s", found.name, why)
            await operations.quietly(self.remove(found.vm, found.name), f"removing {found.name}")
        for found, kept in contents.containers:
            if found.name.startswith(CLONE_NAME):  # it moved, and the port layer ended before the VM got its name
                name = config_spec.display_name(self._template, kept.spec.name, kept.spec.id)
                self.later(self._machines[kept.spec.id].rename_as(name), f"naming the VM {found.name}")
        for found, values in contents.templates:
            await operations.quietly(self._cloning.load(found, values), f"taking up the template {found.name}")

    async def _remove_unused_isos(self) -> None:
        """A VM has the guest image that it booted last in its CD-ROM until it boots again."""
        used = {machine.guest_iso for machine in self._machines.values()}
        for digest in await self._datastore.guest_isos() - {self._guest_image.iso_digest}:
            if not any(digest in path for path in used):
                await self._datastore.remove_guest_iso(digest)

    def _machine(self, found: Found, kept: Kept, record: bytes | None = None) -> VsphereMachine:
        directory = self._directories / kept.spec.id
        directory.mkdir(mode=0o700, exist_ok=True)
        return VsphereMachine(self, found.vm, found.name, found.vc_uuid, kept, directory, record)

    def _expected(self) -> dict[str, str]:
        """The machines that the port layer before had, by their ids, with the instanceUuids of their VMs."""
        files = self._directories.glob(f"*/{_UUID_FILE}")
        return {file.parent.name: vc_uuid for file in files if (vc_uuid := file.read_text())}

    def _remove_stray_directories(self) -> None:
        for path in self._directories.iterdir():
            if path.name not in self._machines:
                shutil.rmtree(path, ignore_errors=True)

    def _changed(self, vm: Any, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Something about a VM in the folder is different; the port layer hears of what concerns its machines."""
        machine = self._by_vm.get(vm._moId)
        if machine is None:
            return
        for change in _changes(machine.id, before, now):
            if change.kind is Change.GONE:
                self._forget(machine.id)
                self.later(_removed(machine.directory), f"removing {machine.directory}")
            if change.kind is Change.MOVED:
                parents = before.get(virtual_machines.PARENT), now.get(virtual_machines.PARENT)
                self.later(self._tell_move(machine, *parents), f"looking where {machine.location} was moved")
            elif self._listener is not None:
                self._listener(change)

    async def _tell_move(self, machine: VsphereMachine, before: Any, after: Any) -> None:
        """With the paths of both folders, or vApps, as far as the account may see them."""
        paths = {"from": await self._path(machine.vm, before), "to": await self._path(machine.vm, after)}
        if self._listener is not None:
            words = {name: path for name, path in paths.items() if path}
            self._listener(MachineChange(machine.id, Change.MOVED, words))

    async def _path(self, vm: Any, parent: Any) -> str:
        """Of a VM's folder; of its vApp where there is none; empty when that is not known."""
        with contextlib.suppress(PortLayerError):
            if parent is None:
                parent = (await self._session.read([vm], [_VAPP])).get(vm, {}).get(_VAPP)
            if parent is not None:
                return await inventory.path_of(self._session, parent)
        return ""

    def _runs(self, vm: Any) -> bool:
        """As vSphere told last."""
        return str(self._vms.known(vm, virtual_machines.POWER)) == _ON

    def _happened(self, vm: Any, kind: Change, words: Mapping[str, str]) -> None:
        """vSphere's event log says so."""
        machine = self._by_vm.get(vm._moId)
        if machine is not None and self._listener is not None:
            self._listener(MachineChange(machine.id, kind, words))


async def _removed(directory: Path) -> None:
    await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


def _changes(machine_id: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[MachineChange]:
    """What a difference means."""
    if not now:
        return [MachineChange(machine_id, Change.GONE)]
    found = []
    power, connection = virtual_machines.POWER, virtual_machines.CONNECTION
    if before.get(power) not in (None, now.get(power)) and (kind := _KINDS.get(str(now.get(power)))) is not None:
        found.append(MachineChange(machine_id, kind))
    if virtual_machines.PARENT in before and before[virtual_machines.PARENT] != now.get(virtual_machines.PARENT):
        found.append(MachineChange(machine_id, Change.MOVED))
    if before.get(connection) not in (None, now.get(connection)):
        found.append(MachineChange(machine_id, Change.CONNECTION, {"state": str(now.get(connection))}))
    return found
