"""What there is of a VCH, sorted: containers, templates, and what a crash left.

It is in the VCH's folder. What an administrator moved out of that is looked for in its resource pool, where VMs stay
when they change folders, and by the instanceUuids of containers that are missing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyVmomi import vim

from portlayer.drivers.vsphere import extra_config, operations, views
from portlayer.drivers.vsphere.extra_config import Kept
from portlayer.drivers.vsphere.session import Session
from portlayer.errors import DriverError

_NAME, _UUID = "name", "config.instanceUuid"
_KEYS = (
    *(extra_config.ID, extra_config.SPEC, extra_config.TOKEN, extra_config.BOOT),
    *(extra_config.LENT_DISK, extra_config.TEMPLATE, extra_config.CLONE, extra_config.REMOVAL),
    *extra_config.RECORD_BEGINS,
)
_PATHS = {operations.extra_config_path(key): key for key in _KEYS}
_READ = [_NAME, _UUID, operations.TASKS, *_PATHS]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A VM. `vc_uuid`: its instanceUuid."""

    vm: Any
    name: str
    vc_uuid: str


@dataclass
class Contents:
    """Everything of ours. What cannot be read is none of it: it is left alone, for an administrator to see."""

    containers: list[tuple[Found, Kept]] = field(default_factory=list)
    templates: list[tuple[Found, Mapping[str, str]]] = field(default_factory=list)
    # With why nobody needs it.
    leftovers: list[tuple[Found, str]] = field(default_factory=list)
    # The VMs of those containers and templates that are not in the folder.
    moved: list[Any] = field(default_factory=list)
    # Whether there is something that may be a container's VM, and cannot be read.
    is_partial: bool = False


async def load(session: Session, scope: Any, pool: Any, expected: Mapping[str, str]) -> Contents:
    """The VMs below `scope`, by a few calls however many there are, and those that were moved out of it.

    `pool` is the VCH's own, or None; `expected` has ids of containers, with what their instanceUuids were.
    """
    contents = Contents()
    within = await _settled(session, await _below(session, scope))
    _sort(contents, within)
    present = {kept.spec.id for _, kept in contents.containers if not kept.lent_disk}
    missing = {machine_id: vc_uuid for machine_id, vc_uuid in expected.items() if machine_id not in present}
    strays = {vm for vm in (*await _in_pool(session, pool), *await _by_uuid(session, missing)) if vm not in within}
    elsewhere = await _settled(session, await session.read(strays, _READ))
    _sort(contents, elsewhere)
    _settle_moves(contents)
    contents.moved = [one.vm for one, _ in (*contents.containers, *contents.templates) if one.vm in elsewhere]
    return contents


def _sort(contents: Contents, vms: Mapping[Any, Mapping[str, Any]]) -> None:
    for vm, known in vms.items():
        found = Found(vm, str(known.get(_NAME, vm._moId)), str(known.get(_UUID, "")))
        values = {_PATHS[path]: str(value) for path, value in known.items() if path in _PATHS}
        if values.get(extra_config.REMOVAL):
            contents.leftovers.append((found, "its removal has begun"))
        elif values.get(extra_config.CLONE):
            contents.leftovers.append((found, "a clone that became no container's"))
        elif values.get(extra_config.TEMPLATE):
            contents.templates.append((found, values))
        elif extra_config.ID in values:
            _add(contents, found, values)
        elif _UUID not in known:  # its datastore is out of reach: vSphere does not know what it is
            contents.is_partial = True
            _log.warning("the VM %s cannot be read: it is looked at again when the VCH starts again", found.name)
        else:
            _log.info("the VM %s is none of ours: left alone", found.name)


def _add(contents: Contents, found: Found, values: Mapping[str, str]) -> None:
    try:
        contents.containers.append((found, extra_config.read(values)))
    except DriverError as error:
        contents.is_partial = True
        _log.error("the VM %s is left alone: %s", found.name, error)


def _settle_moves(contents: Contents) -> None:
    """Where two VMs say that they are the same container, the one that has the disk is; the other lent it."""
    chosen: dict[str, tuple[Found, Kept]] = {}
    for found, kept in contents.containers:
        other = chosen.get(kept.spec.id)
        if other is None:
            chosen[kept.spec.id] = (found, kept)
        elif bool(kept.lent_disk) == bool(other[1].lent_disk):
            _log.error(
                "the VMs %s and %s both say that they are container %s: the first is taken, the second left alone",
                other[0].name,
                found.name,
                kept.spec.id[:12],
            )
        else:
            winner, loser = ((found, kept), other) if other[1].lent_disk else (other, (found, kept))
            chosen[kept.spec.id] = winner
            contents.leftovers.append((loser[0], "its container has moved into a clone"))
    contents.containers = list(chosen.values())


async def _settled(session: Session, vms: dict[Any, dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """The same, once none of them is being reconfigured any more.

    A port layer that was killed a moment ago may have begun to give a clone the disk of a container. Until that has
    ended the clone looks like one that is nobody's, and whoever removed it removed the disk.
    """
    of_task = {task: vm for vm, known in vms.items() for task in known.get(operations.TASKS) or ()}
    going_on = await operations.under_way(session, of_task, operations.RECONFIGURATION)
    changing = {of_task[task] for task in going_on}
    for vm in changing:
        await operations.settled(session, vm, operations.RECONFIGURATION)
    return vms | await session.read(changing, _READ)


async def _below(session: Session, scope: Any) -> dict[Any, dict[str, Any]]:
    view = await views.everything_below(session, scope, [vim.VirtualMachine], "looking for the VMs of this VCH")
    try:
        return await session.retrieve(views.filter_of({vim.VirtualMachine: _READ}, view))
    finally:
        await views.forget(session, view)


async def _in_pool(session: Session, pool: Any) -> list[Any]:
    """The VMs that a pool has itself."""
    if pool is None:
        return []
    return list((await session.read([pool], ["vm"])).get(pool, {}).get("vm") or ())


async def _by_uuid(session: Session, vc_uuids: Mapping[str, str]) -> list[Any]:
    """The VMs of these containers, wherever the account may see them."""
    find, what = session.content.searchIndex.FindByUuid, "looking for the VM of a container"
    asked = [session.call(find, None, vc_uuid, True, True, what=what) for vc_uuid in vc_uuids.values()]
    found = dict(zip(vc_uuids, await asyncio.gather(*asked), strict=True))
    for machine_id in [machine_id for machine_id, vm in found.items() if vm is None]:
        _log.warning("the VM of container %s is gone, or where this account may not see it", machine_id[:12])
    return [vm for vm in found.values() if vm is not None]
