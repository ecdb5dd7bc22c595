"""One container's virtual machine on vSphere: implements Machine.

What it is, and the port layer's record, are in the VM's extraConfig; nothing is remembered here that could not be read
again. Every change is harmless when it is made twice, since a broken connection makes the session repeat it.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from pyVmomi import vim, vmodl

from portlayer.drivers.base import Clone, MachineSpec, PowerState
from portlayer.drivers.uninterrupted import uninterrupted
from portlayer.drivers.vsphere import config_spec, extra_config, virtual_machines
from portlayer.drivers.vsphere.extra_config import Boot
from portlayer.drivers.vsphere.faults import caused_by
from portlayer.drivers.vsphere.session import Session
from portlayer.drivers.vsphere.virtual_machines import VirtualMachines
from portlayer.errors import ConflictError, DriverError, NotFoundError, PortLayerError

# A VM that runs and has not dialled in after this long has its serial port plugged in anew.
_DIAL_S = 15.0
_GUARDED_ATTEMPTS = 5
_STATES = {
    "poweredOn": PowerState.RUNNING,
    "poweredOff": PowerState.OFF,
    # There is no freezing without writing the memory out: a paused container is a suspended VM.
    "suspended": PowerState.PAUSED,
}
_log = logging.getLogger(__name__)


class Lines(Protocol):
    """The concentrator, as far as a machine needs it."""

    async def connect(self, vc_uuid: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The line to a VM's agent; waits until the VM has dialled in."""


class Surroundings(Protocol):
    """What the driver has for every machine."""

    @property
    def session(self) -> Session: ...

    @property
    def vms(self) -> VirtualMachines: ...

    @property
    def lines(self) -> Lines: ...

    async def boot(self) -> Boot:
        """What VMs boot from and dial now."""

    async def power_on(self, vm: Any, name: str) -> None:
        """Powers a VM on, where DRS wants it if there is DRS."""


class VsphereMachine:
    """Implements Machine."""

    def __init__(
        self, spec: MachineSpec, vm: vim.VirtualMachine, name: str, booted: Boot, around: Surroundings, directory: Path
    ) -> None:
        self._spec = spec
        self._vm = vm
        self._name = name
        self._booted = booted
        self._around = around
        self._directory = directory
        self._lock = asyncio.Lock()  # guards the power and the devices
        self._record_lock = asyncio.Lock()
        self._written: bytes | None = None

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
    def directory(self) -> Path:
        return self._directory

    @property
    def location(self) -> str:
        return f"vSphere VM {self._name} ({self._vm._moId})"

    @property
    def console_log(self) -> str | None:
        return f"{config_spec.CONSOLE_LOG} in the directory of the VM {self._name}"

    @property
    def _session(self) -> Session:
        return self._around.session

    async def read_record(self) -> bytes:
        size = await self._values([extra_config.RECORD_SIZE, extra_config.RECORD])
        keys = extra_config.record_keys(_whole(size.get(extra_config.RECORD_SIZE)))
        rest = [key for key in keys if key not in size]
        self._written = extra_config.read_record(size | (await self._values(rest) if rest else {}))
        return self._written

    async def write_record(self, record: bytes) -> None:
        async with self._record_lock:
            await uninterrupted(self._write_record(record))

    async def power_state(self) -> PowerState:
        found = await self._session.read([self._vm], [virtual_machines.POWER])
        if self._vm not in found:
            raise NotFoundError(f"the VM {self._name} does not exist any more")
        return _STATES.get(str(found[self._vm].get(virtual_machines.POWER)), PowerState.OFF)

    async def power_on(self, clone: Clone | None = None) -> None:
        assert clone is None
        async with self._lock:
            await uninterrupted(self._power_on())

    async def power_off(self) -> None:
        async with self._lock:
            await uninterrupted(self._power_off())

    async def wait_off(self) -> None:
        while True:
            change = self._around.vms.change(self._vm)
            try:
                # Asked for: what was told last may be older than a power-on of ours.
                if await self.power_state() is PowerState.OFF:
                    return
            except NotFoundError:
                return
            await change.wait()

    async def pause(self) -> None:
        async with self._lock:
            await self._require(PowerState.RUNNING)
            await self._unless_so(self._vm.SuspendVM_Task, what=f"suspending the VM {self._name}")

    async def resume(self) -> None:
        async with self._lock:
            await self._require(PowerState.PAUSED)
            await self._around.power_on(self._vm, self._name)

    async def open_channel(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        lines, own = self._around.lines, instance_uuid(self.id)
        try:
            async with asyncio.timeout(_DIAL_S):
                return await lines.connect(own)
        except TimeoutError:
            await self._dial_again()
        return await lines.connect(own)

    async def writable_disk_usage(self) -> int:
        found = await self._session.read([self._vm], ["layoutEx.disk", "layoutEx.file", "config.hardware.device"])
        if self._vm not in found:
            raise NotFoundError(f"the VM {self._name} does not exist any more")
        return _disk_usage(found[self._vm])

    async def remove(self) -> None:
        """Powers it off and removes VM and disks. No effect when it is gone."""
        async with self._lock:
            try:
                await self._power_off()
                await self._session.run(self._vm.Destroy_Task, what=f"removing the VM {self._name}")
            except NotFoundError as error:
                if not caused_by(error, vmodl.fault.ManagedObjectNotFound) and await self._exists():
                    raise

    async def _power_on(self) -> None:
        state = await self.power_state()
        if state is PowerState.RUNNING:
            return
        boot = await self._around.boot()
        if boot != self._booted:
            await self._renew_boot(boot)
        await self._around.power_on(self._vm, self._name)

    async def _power_off(self) -> None:
        try:
            if await self.power_state() is not PowerState.OFF:
                await self._unless_so(self._vm.PowerOffVM_Task, what=f"powering off the VM {self._name}")
        except NotFoundError:
            return

    async def _unless_so(self, method: Callable[..., Any], *, what: str) -> None:
        """A change of the power, which may have been made by then: by whoever else, or by the same call before."""
        try:
            await self._session.run(method, what=what)
        except ConflictError as error:
            if not caused_by(error, vim.fault.InvalidPowerState):
                raise

    async def _require(self, wanted: PowerState) -> None:
        if (state := await self.power_state()) is not wanted:
            raise ConflictError(f"the VM {self._name} is {state}, not {wanted}")

    async def _renew_boot(self, boot: Boot) -> None:
        """For a VM that was made when the guest image, or the concentrator's address, was another one."""
        devices = await self._devices()
        edits = config_spec.reboot_edits(devices, boot)
        spec = vim.vm.ConfigSpec(deviceChange=edits, extraConfig=config_spec.options(extra_config.boot(boot)))
        await self._session.run(self._vm.ReconfigVM_Task, spec, what=f"preparing the VM {self._name} for a boot")
        self._booted = boot

    async def _dial_again(self) -> None:
        """Pulls the plug of the serial port and puts it in again: ESXi dials when it is connected."""
        _log.warning("the VM %s has not dialled in for %g s: connecting its serial port again", self._name, _DIAL_S)
        async with self._lock:
            for connected in (False, True):
                channel = [device for device in await self._devices() if config_spec.is_channel(device)]
                if not channel:
                    raise DriverError(f"the serial port of the VM {self._name} was removed: its agent is out of reach")
                edit = config_spec.connection_edit(channel[0], connected=connected)
                spec = vim.vm.ConfigSpec(deviceChange=[edit])
                await self._session.run(self._vm.ReconfigVM_Task, spec, what=f"connecting the VM {self._name}")

    async def _devices(self) -> list[Any]:
        found = await self._session.read([self._vm], ["config.hardware.device"])
        if self._vm not in found:
            raise NotFoundError(f"the VM {self._name} does not exist any more")
        return list(found[self._vm].get("config.hardware.device", ()))

    async def _write_record(self, record: bytes) -> None:
        """Guarded by the changeVersion: one that somebody else has written meanwhile is not overwritten."""
        values = config_spec.options(extra_config.record(record))
        for attempt in range(_GUARDED_ATTEMPTS):
            version = self._around.vms.known(self._vm, virtual_machines.CHANGE_VERSION) if attempt == 0 else None
            spec = vim.vm.ConfigSpec(extraConfig=values, changeVersion=version or await self._change_version())
            try:
                await self._session.run(self._vm.ReconfigVM_Task, spec, what=f"writing the record of {self._name}")
            except ConflictError as error:
                if not caused_by(error, vim.fault.ConcurrentAccess):
                    raise
                if await self._holds(record):
                    break  # the answer to our own write was lost
                continue
            break
        else:
            raise ConflictError(f"the VM {self._name} is changed by others all the time: its record is not written")
        self._written = record

    async def _holds(self, record: bytes) -> bool:
        """Whether the VM has this record. ConflictError when it has one that this machine did not write."""
        before = self._written
        found = await self.read_record()
        if found not in (record, before) and before is not None:
            raise ConflictError(
                f"the record of the VM {self._name} was changed by somebody else: is there another VCH?"
            )
        return found == record

    async def _change_version(self) -> str:
        found = await self._session.read([self._vm], [virtual_machines.CHANGE_VERSION])
        if self._vm not in found:
            raise NotFoundError(f"the VM {self._name} does not exist any more")
        return str(found[self._vm].get(virtual_machines.CHANGE_VERSION, ""))

    async def _values(self, keys: list[str]) -> dict[str, str]:
        """Values of extraConfig."""
        return (await values_of(self._session, [self._vm], keys)).get(self._vm, {})

    async def _exists(self) -> bool:
        return self._vm in await self._session.read([self._vm], [virtual_machines.NAME])


async def values_of(session: Session, vms: list[Any], keys: list[str]) -> dict[Any, dict[str, str]]:
    """Values of extraConfig, of many VMs at once, without all the rest of their configuration."""
    paths = {f'config.extraConfig["{key}"].value': key for key in keys}
    found = await session.read(vms, list(paths))
    return {vm: {paths[path]: str(value) for path, value in values.items()} for vm, values in found.items()}


def instance_uuid(machine_id: str) -> str:
    """The instanceUuid that the VM of a container has in vCenter: a function of the id, so that it is never two."""
    return str(uuid.UUID(machine_id[:32].ljust(32, "0")))


def _whole(text: str | None) -> int:
    try:
        return int(text or "")
    except ValueError as error:
        raise DriverError(f"{text!r} is no size of a record") from error


def _disk_usage(found: dict[str, Any]) -> int:
    """Bytes of all files of the writable disk that are its own: those of the parent serve many."""
    keys = {
        device.key
        for device in found.get("config.hardware.device", ())
        if isinstance(device, vim.vm.device.VirtualDisk) and device.unitNumber == config_spec.WRITABLE_UNIT
    }
    sizes = {file.key: file.size for file in found.get("layoutEx.file", ())}
    chains = [disk.chain for disk in found.get("layoutEx.disk", ()) if disk.key in keys and disk.chain]
    return sum(int(sizes.get(key, 0)) for chain in chains for key in chain[-1].fileKey)


async def quietly(work: Awaitable[Any], what: str) -> None:
    """For clearing up after a failure: what goes wrong there must not hide the failure."""
    try:
        await work
    except PortLayerError as error:
        _log.warning("%s: %s", what, error)
