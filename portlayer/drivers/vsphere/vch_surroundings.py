"""What VMs of every kind have from the VCH that they belong to: implements the protocols of surroundings.py.

How a VM is made, powered on, waited for and removed here, and what it is made of: the guest image, images, networks,
words for people.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

from pyVmomi import vim

from portlayer.drivers.base import DiskNames, MachineSpec, MachineUsage, PowerState
from portlayer.drivers.guest_image import GuestImage
from portlayer.drivers.vsphere import (
    config_spec,
    hosts,
    once,
    operations,
    questions,
    removal,
    virtual_machines,
    vmdk,
)
from portlayer.drivers.vsphere.background import Background
from portlayer.drivers.vsphere.config_spec import Hardware
from portlayer.drivers.vsphere.datastore import VsphereDatastore
from portlayer.drivers.vsphere.extra_config import Boot
from portlayer.drivers.vsphere.faults import caused_by, translated
from portlayer.drivers.vsphere.machine import VsphereMachine
from portlayer.drivers.vsphere.performance import Performance
from portlayer.drivers.vsphere.placement import Placement
from portlayer.drivers.vsphere.power_states import PowerStates
from portlayer.drivers.vsphere.roster import Roster
from portlayer.drivers.vsphere.serial import Concentrator
from portlayer.drivers.vsphere.session import Session
from portlayer.drivers.vsphere.virtual_machines import VirtualMachines
from portlayer.errors import ConflictError, DriverError, NotFoundError, PortLayerError

# Between questions to a vCenter that does not answer, seconds; each of them has been tried for some time.
_ASK_AGAIN_S = 5.0
# For a power-on that was called off to end, seconds.
_CALL_OFF_S = 10.0
_MAX_LINE = 300  # characters
_log = logging.getLogger(__name__)


class VchSurroundings:
    """Implements MachineSurroundings and CloningSurroundings. `proxy_uri` is where serial ports dial."""

    def __init__(
        self,
        session: Session,
        placement: Placement,
        datastore: VsphereDatastore,
        lines: Concentrator,
        guest_image: GuestImage,
        *,
        vms: VirtualMachines,
        roster: Roster,
        background: Background,
        proxy_uri: str,
        vch_name: str,
    ) -> None:
        self._session = session
        self._placement = placement
        self._datastore = datastore
        self._lines = lines
        self._guest_image = guest_image
        self._vms = vms
        self._roster = roster
        self._background = background
        self._vch_name = vch_name
        self.proxy_uri = proxy_uri
        self._power = PowerStates(session)
        self.performance = Performance(session, vms.is_on)
        # What marks VMs as the VCH's, once that is known.
        self.managed_by: vim.ext.ManagedByInfo | None = None

    @property
    def session(self) -> Session:
        return self._session

    @property
    def vms(self) -> VirtualMachines:
        return self._vms

    @property
    def lines(self) -> Concentrator:
        return self._lines

    def later(self, work: Coroutine[Any, Any, None], what: str) -> None:
        self._background.later(work, what)

    # --- a VM's life

    async def make(self, config: vim.vm.ConfigSpec, what: str) -> Any:
        """A new VM of that name and instanceUuid, made once however often it takes."""
        place, session = self._placement, self._session

        async def create() -> Any:
            host = await hosts.for_new_vm(session, place.site)
            return await session.run(place.folder.CreateVM_Task, config, place.resource_pool, host, what=what)

        async def find() -> Any:
            find, where = session.content.searchIndex.FindByUuid, place.datacenter
            return await session.call(find, where, config.instanceUuid, True, True, what="looking for a VM by its uuid")

        async def remove(vm: Any) -> None:
            await self.remove(vm, str(config.name))

        return await once.made(session, create, find, remove, entity=place.folder, what=what)

    async def power_state(self, vm: Any, name: str) -> PowerState:
        return await self._power.of(vm, name)

    async def power_on(self, vm: Any, name: str) -> None:
        """Through the datacenter where DRS is to choose the host. ExhaustedError when admission control refuses.

        ConflictError, which says what is asked, when vSphere asks something first, and nobody answers.
        """
        what = f"powering on the VM {name}"
        try:
            if self._placement.drs_enabled:
                await self._unless_asked(vm, what, self._power_on_by_drs(vm, what))
            else:
                # Where a host was named: a cluster's DRS would choose another one if it were left out.
                host = self._placement.site.host
                await self._unless_asked(vm, what, self._session.run(vm.PowerOnVM_Task, host, what=what))
        except PortLayerError as error:
            if not caused_by(error, vim.fault.InvalidPowerState):
                raise

    async def _unless_asked(self, vm: Any, what: str, work: Coroutine[Any, Any, Any]) -> None:
        """Powers on by `work`, which is called off when that takes somebody's answer."""
        working = asyncio.create_task(work)
        asked = asyncio.create_task(self._vms.asked(vm))
        try:
            await asyncio.wait((working, asked), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                await working
                return
            await operations.quietly(operations.call_off(self._session, vm, operations.POWERING_ON), what)
            await asyncio.wait((working,), timeout=_CALL_OFF_S)
            if working.done() and working.exception() is None:
                return  # it was answered just now
            then = "power it on there, answer, and it starts" if working.done() else "answer there, and it starts"
            question = questions.words(asked.result())
            raise ConflictError(f"{what}: vCenter asks, and nobody has answered: {question}: {then}")
        finally:
            working.cancel()
            asked.cancel()

    async def _power_on_by_drs(self, vm: Any, what: str) -> None:
        # In a cluster whose DRS only recommends, nothing would be powered on but by an administrator.
        act = vim.option.OptionValue(
            key="OverrideAutomationLevel",
            value=vim.cluster.DrsConfigInfo.DrsBehavior.fullyAutomated,
        )
        result = await self._session.run(self._placement.datacenter.PowerOnMultiVM_Task, [vm], [act], what=what)
        for refused in result.notAttempted or ():
            if not isinstance(refused.fault, vim.fault.InvalidPowerState):
                raise translated(refused.fault, what) from refused.fault
        for attempt in result.attempted or ():
            if attempt.task is not None:
                await self._session.tasks.outcome(attempt.task, what)

    async def wait_off(self, vm: Any) -> None:
        """However long vCenter is away: a container that nobody watches would run for ever."""
        while True:
            change = self._vms.change(vm)
            # That it is off may have been told before a power-on of ours, so that is looked up. Where it is known to be
            # on nobody has to look: what ends that will be told.
            if not self._vms.is_on(vm):
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

    async def remove(self, vm: Any, name: str) -> None:
        await removal.remove(self._session, vm, name, self._placement.datacenter)

    async def usage(self, vm: Any) -> MachineUsage | None:
        return await self.performance.usage(vm)

    # --- whose a VM is, and where

    def is_now_of(self, machine: VsphereMachine, before: Any = None) -> None:
        self._roster.note_vm(machine, before)
        self.into_group(machine.vm)

    def forget(self, machine: VsphereMachine) -> None:
        """Its VM is gone."""
        self._roster.forget(machine)
        self._lines.dismiss(machine.vc_uuid)
        if (group := self._placement.affinity) is not None:
            self.later(group.leave(machine.vm), f"taking a VM out of the group {group.name}")

    def was_moved(self, vm: Any) -> bool:
        return self._vms.known(vm, virtual_machines.PARENT) not in (None, self._placement.folder)

    def into_group(self, vm: Any) -> None:
        """Puts a VM into the affinity group, if there is one."""
        if (group := self._placement.affinity) is not None:
            self.later(group.join(vm), f"putting a VM into the group {group.name}")

    # --- what a VM is made of

    @property
    def disk_names(self) -> DiskNames:
        return DiskNames(f"scsi:{config_spec.IMAGE_UNIT}", f"scsi:{config_spec.WRITABLE_UNIT}")

    async def boot(self) -> Boot:
        image = self._guest_image
        if image.iso is None:
            raise DriverError(
                f"the guest image in {image.directory} has no ISO: make it anew with photon-image/build.py"
            )
        return Boot(await self._datastore.guest_iso(image.iso, image.iso_digest), self.proxy_uri)

    async def image_disk(self, name: str) -> config_spec.Parent:
        size = await self._datastore.image_disk_bytes(name)
        return config_spec.Parent(self._datastore.image_path(name), vmdk.whole(size))

    def described(self, spec: MachineSpec) -> vim.vm.ConfigSpec:
        about = vim.vm.ConfigSpec(managedBy=self.managed_by)
        image, owner = _line(spec.image_name or spec.image_disk), _line(spec.owner or "not known")
        about.annotation = (
            f"Container {spec.name} of the virtual container host {self._vch_name}\n"
            f"id: {spec.id}\nimage: {image}\nowner: {owner}\n"
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


def _line(text: str) -> str:
    """On one line of an annotation, whatever a certificate says: others are not to be imitated, nor XML broken."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:_MAX_LINE])
