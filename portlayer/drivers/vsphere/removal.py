"""How a VM is removed: with all that is its own, and with nothing that other VMs have a share in.

vCenter's Destroy_Task removes not only the disks that are attached to a VM, but also what these are children of, unless
another VM uses it. The last container of an image would take the image along, and the empty disk of its size. So disks
that are children go by themselves, before:

    1  PowerOffVM_Task
    2  ReconfigVM_Task            takes the children off, and notes in extraConfig where they are (vch.removal)
    3  DeleteVirtualDisk_Task     each of them: the child alone
    4  DeleteDatastoreFile_Task   the console.log: vSphere leaves the files of serial ports, and then the VM's directory
    5  Destroy_Task

Whatever step was the last, the note is enough to go on: a VM that has one is being removed, and nothing else any more.

Facts: vmware/vic issues 1383 and 2928 (vCenter removes chains, ESXi by itself does not), 3931 (disks are deleted by
VirtualDiskManager, which knows what a disk of vSAN is).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Any

from pyVmomi import vim

from portlayer.drivers.base import PowerState
from portlayer.drivers.vsphere import config_spec, extra_config, files, operations, vmdk
from portlayer.drivers.vsphere.faults import caused_by
from portlayer.drivers.vsphere.session import Session
from portlayer.errors import NotFoundError, PortLayerError

_NOTE = operations.extra_config_path(extra_config.REMOVAL)
_log = logging.getLogger(__name__)


async def remove(session: Session, vm: Any, name: str, datacenter: Any) -> None:
    """Powers a VM of that datacenter off and removes it. No effect when it is gone. May be repeated."""
    with contextlib.suppress(NotFoundError):  # the VM has gone, or goes meanwhile
        found = await operations.properties(session, vm, name, [operations.POWER, operations.DEVICES, _NOTE])
        if operations.state_of(found) is not PowerState.OFF:
            await operations.cut_power(session, vm, name)
        devices = list(found.get(operations.DEVICES, ()))
        disks = await _take_off_children(session, vm, name, devices, extra_config.read_removal(found.get(_NOTE)))
        await asyncio.gather(*(_delete_disk(session, path, datacenter) for path in disks))
        if (console := config_spec.console_of(devices)) is not None:
            await operations.quietly(
                files.remove(session, console, datacenter), f"removing the console.log of the VM {name}"
            )
    try:
        await session.run(vm.Destroy_Task, what=f"removing the VM {name}")
    except NotFoundError:
        if vm in await session.read([vm], ["name"]):
            raise  # it is something of it that is not found


async def _take_off_children(
    session: Session, vm: Any, name: str, devices: list[Any], noted: Sequence[str]
) -> Sequence[str]:
    """The paths of disks that are to be deleted; none of them is attached any more."""
    children = config_spec.children(devices)
    if not children:
        return noted
    paths = list(dict.fromkeys([*noted, *(str(child.backing.fileName) for child in children)]))
    note = extra_config.removal(paths)
    spec = vim.vm.ConfigSpec(
        deviceChange=[config_spec.taken_off(child) for child in children], extraConfig=config_spec.options(note)
    )
    await operations.reconfigure_once(session, vm, spec, f"taking the disks off the VM {name}", note)
    return paths


async def _delete_disk(session: Session, path: str, datacenter: Any) -> None:
    try:
        await vmdk.delete(session, path, datacenter)
    except NotFoundError:
        pass
    except PortLayerError as error:
        if not caused_by(error, vim.fault.InvalidDatastore):
            raise
        # Somebody has taken the VM to another datacenter, or the datastore away.
        _log.warning("the disk %s stays: %s", path, error)
