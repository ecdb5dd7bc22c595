"""What is done to VMs of every kind: containers', templates, clones. All of it may be done twice."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Sequence
from typing import Any

from pyVmomi import vim

from portlayer.drivers.base import PowerState
from portlayer.drivers.vsphere import config_spec
from portlayer.drivers.vsphere.faults import caused_by
from portlayer.drivers.vsphere.session import Session
from portlayer.errors import ConflictError, DriverError, NotFoundError, PortLayerError

_POWER = "runtime.powerState"
_DEVICES = "config.hardware.device"
_STATES = {
    "poweredOn": PowerState.RUNNING,
    "poweredOff": PowerState.OFF,
    # There is no freezing without writing the memory out: a paused container is a suspended VM.
    "suspended": PowerState.PAUSED,
}
_log = logging.getLogger(__name__)


async def properties(session: Session, vm: Any, name: str, paths: Sequence[str]) -> dict[str, Any]:
    """Raises NotFoundError when the VM is gone."""
    found = await session.read([vm], paths)
    if vm not in found:
        raise NotFoundError(f"the VM {name} does not exist any more")
    return found[vm]


async def power_state(session: Session, vm: Any, name: str) -> PowerState:
    state = str((await properties(session, vm, name, [_POWER])).get(_POWER))
    return _STATES.get(state, PowerState.OFF)


async def power_states(session: Session, vms: Sequence[Any]) -> dict[Any, PowerState]:
    """Of those that are there."""
    found = await session.read(vms, [_POWER])
    return {vm: _STATES.get(str(values.get(_POWER)), PowerState.OFF) for vm, values in found.items()}


async def devices(session: Session, vm: Any, name: str) -> list[Any]:
    return list((await properties(session, vm, name, [_DEVICES])).get(_DEVICES, ()))


async def reconfigure(session: Session, vm: Any, spec: vim.vm.ConfigSpec, what: str) -> None:
    await session.run(vm.ReconfigVM_Task, spec, what=what)


async def power_off(session: Session, vm: Any, name: str) -> None:
    """No effect when it is off, or gone."""
    try:
        if await power_state(session, vm, name) is not PowerState.OFF:
            await session.run(vm.PowerOffVM_Task, what=f"powering off the VM {name}")
    except NotFoundError:
        return
    except ConflictError as error:
        if not caused_by(error, vim.fault.InvalidPowerState):
            raise


async def suspend(session: Session, vm: Any, name: str) -> None:
    try:
        await session.run(vm.SuspendVM_Task, what=f"suspending the VM {name}")
    except ConflictError as error:
        if not caused_by(error, vim.fault.InvalidPowerState):
            raise


async def remove(session: Session, vm: Any, name: str, datacenter: Any = None) -> None:
    """Powers it off and removes it with the disks that are attached to it. No effect when it is gone.

    Of a VM that has run, in that datacenter, what its console wrote goes first: vSphere leaves the files of serial
    ports, and then the directory of the VM.
    """
    await power_off(session, vm, name)
    if datacenter is not None:
        await quietly(_remove_console(session, vm, name, datacenter), f"removing the console.log of the VM {name}")
    try:
        await session.run(vm.Destroy_Task, what=f"removing the VM {name}")
    except NotFoundError:
        if vm in await session.read([vm], ["name"]):
            raise  # it is something of it that is not found


async def _remove_console(session: Session, vm: Any, name: str, datacenter: Any) -> None:
    with contextlib.suppress(NotFoundError):
        if (path := config_spec.console_of(await devices(session, vm, name))) is not None:
            delete = session.content.fileManager.DeleteDatastoreFile_Task
            await session.run(delete, path, datacenter, what=f"removing {path}")


async def plug_in(session: Session, vm: Any, name: str) -> None:
    """Pulls the plug of the agent's serial port and puts it in again: ESXi dials when it is connected."""
    for connected in (False, True):
        channel = next((one for one in await devices(session, vm, name) if config_spec.is_channel(one)), None)
        if channel is None:
            raise DriverError(f"the VM {name} has lost its serial port: its agent is out of reach")
        spec = vim.vm.ConfigSpec(deviceChange=[config_spec.connection_edit(channel, connected=connected)])
        await reconfigure(session, vm, spec, f"connecting the serial port of the VM {name}")


def extra_config_path(key: str) -> str:
    """The property path of one value."""
    return f'config.extraConfig["{key}"].value'


async def values_of(session: Session, vms: Sequence[Any], keys: Sequence[str]) -> dict[Any, dict[str, str]]:
    """Values of extraConfig, of many VMs at once, without all the rest of their configuration."""
    paths = {extra_config_path(key): key for key in keys}
    found = await session.read(vms, list(paths))
    return {vm: {paths[path]: str(value) for path, value in values.items()} for vm, values in found.items()}


async def quietly(work: Awaitable[Any], what: str) -> None:
    """For clearing up after a failure: what goes wrong there must not hide the failure."""
    try:
        await work
    except PortLayerError as error:
        _log.warning("%s: %s", what, error)
