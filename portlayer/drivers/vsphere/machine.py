"""One container's virtual machine on vSphere: implements Machine.

What it is, and the port layer's record, are in the VM's extraConfig; nothing is remembered here that could not be read
again. Every change is harmless when it is made twice, since a broken connection makes the session repeat it.

A container that starts in a clone changes its VM: the clone gets the container's disks and its extraConfig, and the VM
before is removed. `vch.disk` says of a VM that it has lent its writable disk, so at every instant of that one VM is the
container's: the one that has the disk.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyVmomi import vim

from portlayer.drivers.base import Clone, MachineSpec, MachineUsage, PowerState
from portlayer.drivers.uninterrupted import remotely
from portlayer.drivers.vsphere import as_made, config_spec, extra_config, operations, virtual_machines
from portlayer.drivers.vsphere.cloning import VsphereClone
from portlayer.drivers.vsphere.extra_config import Boot
from portlayer.drivers.vsphere.replug import Replug
from portlayer.drivers.vsphere.session import Session
from portlayer.drivers.vsphere.surroundings import MachineSurroundings
from portlayer.drivers.vsphere.vm_record import VmRecord
from portlayer.errors import ConflictError, DriverError, PortLayerError

# A VM that runs and has not dialled in after this long has its serial port plugged in anew; seconds.
_DIAL_S = 15.0
# Then it is looked at again.
_PATIENCE_S = 60.0
_log = logging.getLogger(__name__)


class VsphereMachine:
    """Implements Machine. `kept` is what the VM's extraConfig says, `vc_uuid` its instanceUuid.

    `record` is what the VM was made with; None when it was found.
    """

    def __init__(
        self,
        around: MachineSurroundings,
        vm: vim.VirtualMachine,
        name: str,
        vc_uuid: str,
        kept: extra_config.Kept,
        directory: Path,
        record: bytes | None = None,
    ) -> None:
        self._around = around
        self._replug = Replug()
        self._spec = kept.spec
        self._booted = kept.boot
        self._lent_disk = config_spec.backing_at(kept.lent_disk) if kept.lent_disk else None
        self._vm = vm
        self._name = name
        self._vc_uuid = vc_uuid
        self._directory = directory
        self._lock = asyncio.Lock()  # guards the power and the devices
        self._record = VmRecord(around.session, lambda: (self._vm, self._name), record, kept.record)
        # A clone that has been asked to become this container's VM, as long as it is not known whether it has.
        self._offered: VsphereClone | None = None
        # VMs that it was before, until they are removed: one that stayed behind would become the container again.
        self._former: list[Any] = []

    @property
    def id(self) -> str:
        return self._spec.id

    @property
    def spec(self) -> MachineSpec:
        return self._spec

    @property
    def vm(self) -> vim.VirtualMachine:
        """The VM that it is now."""
        return self._vm

    @property
    def vc_uuid(self) -> str:
        return self._vc_uuid

    @property
    def guest_iso(self) -> str:
        """What its CD-ROM has, "[datastore] path"."""
        return self._booted.guest_iso

    @property
    def directory(self) -> Path:
        return self._directory

    @property
    def location(self) -> str:
        return f"vSphere VM {self._name}"

    @property
    def console_log(self) -> str | None:
        return f"{config_spec.CONSOLE_LOG} in the directory of the VM {self._name}"

    @property
    def _session(self) -> Session:
        return self._around.session

    async def read_record(self) -> bytes:
        return await self._record.read()

    async def write_record(self, record: bytes) -> None:
        await self._record.write(record)

    async def power_state(self) -> PowerState:
        return await self._around.power_state(self._vm, self._name)

    async def power_on(self, clone: Clone | None = None) -> None:
        await remotely(self._power_on(clone))

    async def _power_on(self, clone: Clone | None) -> None:
        """Whoever does not wait any more: a clone that went while it is given the disk would take that along."""
        try:
            async with self._lock:
                await self._settle()
                if clone is None and not self._lent_disk and await self._around.boot() == self._booted:
                    # It can be powered on as it is, which has no effect on one that runs.
                    await self._around.power_on(self._vm, self._name)
                elif await self.power_state() is not PowerState.RUNNING:
                    await (self._boot() if clone is None else self._move_into(clone))
        finally:
            if clone is not None:
                await clone.discard()

    async def power_off(self) -> None:
        async with self._lock:
            await remotely(operations.power_off(self._session, self._vm, self._name))

    async def wait_off(self) -> None:
        await self._around.wait_off(self._vm)

    async def pause(self) -> None:
        async with self._lock:
            await self._require(PowerState.RUNNING)
            await operations.suspend(self._session, self._vm, self._name)

    async def resume(self) -> None:
        async with self._lock:
            await self._require(PowerState.PAUSED)
            await self._around.power_on(self._vm, self._name)

    async def open_channel(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            async with asyncio.timeout(_DIAL_S):
                streams = await self._around.lines.connect(self._vc_uuid)
        except TimeoutError:
            # One that is suspended dials when it goes on, however long that takes.
            if self._replug.is_due and await self.power_state() is PowerState.RUNNING:
                await self._plug_in()
            async with asyncio.timeout(_PATIENCE_S):
                streams = await self._around.lines.connect(self._vc_uuid)
        self._replug.dialled()
        return streams

    async def _plug_in(self) -> None:
        _log.warning("the VM %s has not dialled in for %g s: connecting its serial port", self._name, _DIAL_S)
        async with self._lock:
            await operations.plug_in(self._session, self._vm, self._name, self._around.proxy_uri)
        self._replug.done()

    async def writable_disk_usage(self) -> int:
        paths = ["layoutEx.disk", "layoutEx.file", operations.DEVICES]
        return _disk_usage(await operations.properties(self._session, self._vm, self._name, paths))

    async def usage(self) -> MachineUsage | None:
        return await self._around.usage(self._vm)

    async def remove(self) -> None:
        """Powers it off and removes VM and disks. No effect when it is gone."""
        async with self._lock:
            await self._settle()
            for former in list(self._former):
                await self._around.remove(former, f"that {self._name} was")
            if self._lent_disk:  # back to where it is removed with the VM
                await operations.quietly(self._take_disks_back(), f"the disk of the VM {self._name}")
            await self._around.remove(self._vm, self._name)

    async def rename_as(self, name: str) -> None:
        """Gives the VM the name that the container's should have."""
        await self._session.run(self._vm.Rename_Task, name, what=f"renaming the VM {self._name} to {name}")
        self._name = name

    # --- starting

    async def _boot(self) -> None:
        if self._lent_disk:
            await self._take_disks_back()
        boot = await self._around.boot()
        if boot != self._booted:
            await self._renew_boot(boot)
        await self._around.power_on(self._vm, self._name)

    async def _renew_boot(self, boot: Boot) -> None:
        """For a VM that was made when the guest image, or the concentrator's address, was another one."""
        edits = config_spec.reboot_edits(await operations.devices(self._session, self._vm, self._name), boot)
        spec = vim.vm.ConfigSpec(deviceChange=edits, extraConfig=config_spec.options(extra_config.boot(boot)))
        await operations.reconfigure(self._session, self._vm, spec, f"preparing the VM {self._name} for a boot")
        self._booted = boot

    async def _take_disks_back(self) -> None:
        """The disks of a VM whose move into a clone came to nothing."""
        devices = await operations.devices(self._session, self._vm, self._name)
        changes, back = await self._disks(devices, self._lent_disk), extra_config.lent_disk("")
        spec = vim.vm.ConfigSpec(deviceChange=changes, extraConfig=config_spec.options(back))
        what = f"giving the VM {self._name} its disks back"
        await operations.reconfigure_once(self._session, self._vm, spec, what, back)
        self._lent_disk = None

    # --- starting in a clone

    async def _move_into(self, clone: Clone) -> None:
        """The clone becomes this container's VM, and the VM before goes."""
        assert isinstance(clone, VsphereClone)
        networks = self._around.card_backings(self._spec.networks)
        writable = await self._lend_disk(networks)
        devices = await operations.devices(self._session, clone.vm, clone.name)
        spec = self._around.described(self._spec)
        spec.deviceChange = await self._disks(devices, writable)
        if not config_spec.cards(devices):
            spec.deviceChange += config_spec.nics(networks)
        values = extra_config.fixed(self._spec, clone.token) | extra_config.boot(self._booted) | self._mark
        async with self._record.held() as record:
            spec.extraConfig = config_spec.options(values | extra_config.record(record))
            clone.become_a_containers()  # from here on it may have the disk
            self._offered = clone
            try:
                what = f"making {clone.name} the VM of {self._name}"
                await operations.reconfigure(self._session, clone.vm, spec, what)
            except PortLayerError:
                await self._settle()
                if self._vm is not clone.vm:
                    raise
            else:
                self._become(clone)

    @property
    def _mark(self) -> dict[str, str]:
        """What a VM has in extraConfig that is this container's, and no clone has."""
        return {extra_config.ID: self.id} | extra_config.clone("")

    async def _settle(self) -> None:
        """Finds out whether the clone that was to become this container's VM has. Raises while nobody can be asked.

        Until then the clone is not to be removed, since the writable disk would go with it; nor is the VM before to be
        given the disk back, since a clone that has it runs.
        """
        if (clone := self._offered) is None:
            return
        _log.info("whether %s has become the VM of %s is looked up", clone.name, self._name)
        if await operations.has_values(self._session, clone.vm, self._mark):
            self._record.doubt()
            self._become(clone)
        else:
            await clone.remove()
            self._offered = None

    def _become(self, clone: VsphereClone) -> None:
        before = self._vm
        self._around.lines.dismiss(self._vc_uuid)
        self._vm, self._vc_uuid, self._lent_disk, self._offered = clone.vm, clone.uuid, None, None
        self._former.append(before)
        self._around.is_now_of(self, before)
        self._around.later(self._replace(before, self._name), f"removing the VM that {self._name} was")

    async def _replace(self, before: Any, name: str) -> None:
        await self._around.remove(before, name)
        if before in self._former:
            self._former.remove(before)
        await self.rename_as(name)

    async def _lend_disk(self, networks: Sequence[Any]) -> Any:
        """Takes the writable disk off the VM, and notes there where it is. Gives back the disk's backing."""
        found = await operations.properties(
            self._session, self._vm, self._name, [*as_made.PATHS, virtual_machines.CHANGE_VERSION]
        )
        devices = list(found.get(operations.DEVICES, ()))
        if self._around.was_moved(self._vm) or not as_made.is_as_made(found, self._spec, networks):
            raise ConflictError(f"the VM {self._name} was changed by an administrator: what it has stays, so it boots")
        writable = config_spec.disk_at(devices, config_spec.WRITABLE_UNIT)
        if writable is None and self._lent_disk:
            return self._lent_disk
        if writable is None:
            raise DriverError(f"the VM {self._name} has lost its writable disk")
        lent = extra_config.lent_disk(str(writable.backing.fileName))
        spec = vim.vm.ConfigSpec(
            deviceChange=[config_spec.taken_off(writable)],
            extraConfig=config_spec.options(lent),
            changeVersion=found.get(virtual_machines.CHANGE_VERSION),  # what it was looked at for is still so
        )
        self._lent_disk = writable.backing  # perhaps: a boot looks whether the VM has its disk
        what = f"taking the disk of the VM {self._name}"
        await operations.reconfigure_once(self._session, self._vm, spec, what, lent)
        return self._lent_disk

    async def _disks(self, devices: list[Any], writable: Any) -> list[Any]:
        """The container's disks, for a VM with these devices, unless it has them."""
        controller = config_spec.scsi_controller_key(devices)
        if controller is None:
            raise DriverError(f"the VM {self._name} has lost its PVSCSI controller")
        changes = []
        if config_spec.disk_at(devices, config_spec.IMAGE_UNIT) is None:
            changes.append(config_spec.image_disk(await self._around.image_disk(self._spec.image_disk), controller))
        if config_spec.disk_at(devices, config_spec.WRITABLE_UNIT) is None:
            changes.append(config_spec.existing_disk(writable, controller))
        return changes

    async def _require(self, wanted: PowerState) -> None:
        if (state := await self.power_state()) is not wanted:
            raise ConflictError(f"the VM {self._name} is {state}, not {wanted}")


def first_uuid(machine_id: str) -> str:
    """The instanceUuid that the VM of a container is made with: a function of the id, so that it is never two."""
    return str(uuid.UUID(machine_id[:32].ljust(32, "0")))


def _disk_usage(found: dict[str, Any]) -> int:
    """Bytes of the files that are the writable disk's own: those of its parent serve many."""
    disk = config_spec.disk_at(list(found.get(operations.DEVICES, ())), config_spec.WRITABLE_UNIT)
    sizes = {file.key: int(file.size) for file in found.get("layoutEx.file", ())}
    chains = [one.chain for one in found.get("layoutEx.disk", ()) if disk is not None and one.key == disk.key]
    return sum(sizes.get(key, 0) for chain in chains if chain for key in chain[-1].fileKey)
