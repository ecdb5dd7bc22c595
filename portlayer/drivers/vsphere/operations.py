"""What is done to VMs of every kind: containers', templates, clones. All of it may be done twice."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Collection, Mapping, Sequence
from typing import Any

from pyVmomi import vim

from portlayer.drivers.base import PowerState
from portlayer.drivers.vsphere import config_spec
from portlayer.drivers.vsphere.faults import caused_by
from portlayer.drivers.vsphere.session import Session
from portlayer.errors import ConflictError, DriverError, NotFoundError, PortLayerError

POWER = "runtime.powerState"
DEVICES = "config.hardware.device"
TASKS = "recentTask"
# In what vSphere calls tasks of ReconfigVM_Task (VirtualMachine.reconfigure).
RECONFIGURATION = "reconfig"
# In what it calls tasks of PowerOnVM_Task (VirtualMachine.powerOn).
POWERING_ON = "powerOn"
_TASK_STATE, _TASK_KIND = "info.state", "info.descriptionId"
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
    return state_of(await properties(session, vm, name, [POWER]))


def state_of(found: Mapping[str, Any]) -> PowerState:
    """As properties of a VM, POWER among them, say."""
    return _STATES.get(str(found.get(POWER)), PowerState.OFF)


async def power_states(session: Session, vms: Sequence[Any]) -> dict[Any, PowerState]:
    """Of those that are there."""
    found = await session.read(vms, [POWER])
    return {vm: state_of(values) for vm, values in found.items()}


async def devices(session: Session, vm: Any, name: str) -> list[Any]:
    return list((await properties(session, vm, name, [DEVICES])).get(DEVICES, ()))


async def reconfigure(session: Session, vm: Any, spec: vim.vm.ConfigSpec, what: str) -> None:
    await session.run(vm.ReconfigVM_Task, spec, what=what)


async def reconfigure_once(
    session: Session, vm: Any, spec: vim.vm.ConfigSpec, what: str, marks: Mapping[str, str]
) -> None:
    """For a change that cannot be made twice: a device that has gone cannot be removed again.

    `marks` are values of the VM's extraConfig that `spec` brings and that were not there before.
    """
    try:
        await reconfigure(session, vm, spec, what)
    except PortLayerError:
        if not await has_values(session, vm, marks):
            raise


async def power_off(session: Session, vm: Any, name: str) -> None:
    """No effect when it is off, or gone."""
    with contextlib.suppress(NotFoundError):
        if await power_state(session, vm, name) is not PowerState.OFF:
            await cut_power(session, vm, name)


async def cut_power(session: Session, vm: Any, name: str) -> None:
    """No effect when it is off. NotFoundError when it is gone."""
    try:
        await session.run(vm.PowerOffVM_Task, what=f"powering off the VM {name}")
    except ConflictError as error:
        if not caused_by(error, vim.fault.InvalidPowerState):
            raise


async def suspend(session: Session, vm: Any, name: str) -> None:
    try:
        await session.run(vm.SuspendVM_Task, what=f"suspending the VM {name}")
    except ConflictError as error:
        if not caused_by(error, vim.fault.InvalidPowerState):
            raise


async def plug_in(session: Session, vm: Any, name: str, proxy_uri: str) -> None:
    """Pulls the plug of the agent's serial port and puts it in again: ESXi dials when it is connected.

    It is the moment to say where, too: the backing of a port that is connected cannot be changed.
    """
    for connected in (False, True):
        channel = next((one for one in await devices(session, vm, name) if config_spec.is_channel(one)), None)
        if channel is None:
            raise DriverError(f"the VM {name} has lost its serial port: its agent is out of reach")
        if connected:
            channel.backing.proxyURI = proxy_uri
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


async def has_values(session: Session, vm: Any, wanted: Mapping[str, str]) -> bool:
    """Whether a VM has these values in extraConfig once it is not being reconfigured any more.

    After a call whose answer was lost, what it asked for may still be under way.
    """
    await settled(session, vm, RECONFIGURATION)
    found = (await values_of(session, [vm], list(wanted))).get(vm, {})
    return all(found.get(key, "") == value for key, value in wanted.items())


async def settled(session: Session, entity: Any, kind: str = "") -> None:
    """Waits for the end of the tasks, of that kind, that vSphere has with an entity now.

    Raises when they cannot be asked for.
    """
    recent = await _recent(session, entity)
    while going_on := await under_way(session, recent, kind):
        for task in going_on:
            await quietly(session.tasks.outcome(task, "an earlier attempt"), "waiting for it")


async def call_off(session: Session, entity: Any, kind: str) -> None:
    """Asks vSphere to give up the tasks, of that kind, that it has with an entity now. Some cannot be."""
    for task in await under_way(session, await _recent(session, entity), kind):
        await quietly(session.call(task.CancelTask, what="calling a task off"), "it goes on")


async def _recent(session: Session, entity: Any) -> list[Any]:
    return list((await session.read([entity], [TASKS])).get(entity, {}).get(TASKS, ()))


async def under_way(session: Session, tasks: Collection[Any], kind: str = "") -> list[Any]:
    """Those that have not ended. `kind`: a word in what vSphere calls them."""
    try:
        found = await session.read(tasks, [_TASK_STATE, _TASK_KIND])
    except NotFoundError:
        if len(tasks) == 1:
            return []
        return [one for task in tasks for one in await under_way(session, [task], kind)]
    ended = (vim.TaskInfo.State.success, vim.TaskInfo.State.error)
    going_on = {task: values for task, values in found.items() if values.get(_TASK_STATE) not in ended}
    return [task for task, values in going_on.items() if kind in str(values.get(_TASK_KIND))]


async def quietly(work: Awaitable[Any], what: str) -> None:
    """For clearing up after a failure: what goes wrong there must not hide the failure."""
    try:
        await work
    except PortLayerError as error:
        _log.warning("%s: %s", what, error)
