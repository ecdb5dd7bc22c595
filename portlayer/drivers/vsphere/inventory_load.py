"""What is in a VCH's folder, sorted: containers, templates, and what a crash left."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyVmomi import vim, vmodl

from portlayer.drivers.vsphere import extra_config
from portlayer.drivers.vsphere.extra_config import Kept
from portlayer.drivers.vsphere.session import Session
from portlayer.drivers.vsphere.updates import forget_view
from portlayer.errors import DriverError

_NAME, _UUID = "name", "config.instanceUuid"
_KEYS = (
    *(extra_config.ID, extra_config.SPEC, extra_config.TOKEN, extra_config.BOOT),
    *(extra_config.LENT_DISK, extra_config.TEMPLATE, extra_config.CLONE),
    *extra_config.RECORD_BEGINS,
)
_Collector = vmodl.query.PropertyCollector
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A VM. `vc_uuid`: its instanceUuid."""

    vm: Any
    name: str
    vc_uuid: str


@dataclass
class Contents:
    """Everything of ours. What cannot be read is in none of these: it is left alone, for an administrator to see."""

    containers: list[tuple[Found, Kept]] = field(default_factory=list)
    templates: list[tuple[Found, Mapping[str, str]]] = field(default_factory=list)
    # With why nobody needs it.
    leftovers: list[tuple[Found, str]] = field(default_factory=list)


async def load(session: Session, scope: Any) -> Contents:
    """The VMs below `scope`, by a few calls however many there are."""
    contents = Contents()
    for found, values in await _read(session, scope):
        if values.get(extra_config.CLONE):
            contents.leftovers.append((found, "a clone that became no container's"))
        elif values.get(extra_config.TEMPLATE):
            contents.templates.append((found, values))
        elif extra_config.ID in values:
            _add(contents, found, values)
        else:
            _log.info("the VM %s is none of ours: left alone", found.name)
    _settle_moves(contents)
    return contents


def _add(contents: Contents, found: Found, values: Mapping[str, str]) -> None:
    try:
        contents.containers.append((found, extra_config.read(values)))
    except DriverError as error:
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


async def _read(session: Session, scope: Any) -> list[tuple[Found, dict[str, str]]]:
    views = session.content.viewManager
    what = "looking for the VMs of this VCH"
    view = await session.call(views.CreateContainerView, scope, [vim.VirtualMachine], True, what=what)
    try:
        paths = {f'config.extraConfig["{key}"].value': key for key in _KEYS}
        step = _Collector.TraversalSpec(type=vim.view.ContainerView, path="view", skip=False)
        spec = _Collector.FilterSpec(
            propSet=[_Collector.PropertySpec(type=vim.VirtualMachine, pathSet=[_NAME, _UUID, *paths])],
            objectSet=[_Collector.ObjectSpec(obj=view, skip=True, selectSet=[step])],
        )
        known = await session.retrieve(spec)
    finally:
        await forget_view(session, view)
    return [
        (
            Found(vm, str(values.get(_NAME, vm._moId)), str(values.get(_UUID, ""))),
            {paths[path]: str(value) for path, value in values.items() if path in paths},
        )
        for vm, values in known.items()
    ]
