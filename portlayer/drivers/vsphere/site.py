"""What an administrator named, found: cluster, datastores and networks that a VCH's VMs go to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from portlayer.drivers.vsphere import port_groups
from portlayer.drivers.vsphere.inventory import Entity, Inventory, choose
from portlayer.drivers.vsphere.port_groups import PortGroup
from portlayer.drivers.vsphere.session import Session
from portlayer.drivers.vsphere.settings import VsphereSettings
from portlayer.errors import DriverError, InvalidArgumentError

_CONFIGURATION = "configurationEx"


@dataclass(frozen=True)
class Site:
    """Everything that the settings name. Nothing of it is the VCH's own."""

    datacenter: Entity
    # The cluster, or the host outside clusters.
    compute: Entity
    # One of the cluster's hosts, when VMs are to be on that one.
    host: Any
    # All that VMs may run on.
    hosts: tuple[Any, ...]
    # Where the VCH's own pool goes.
    parent_pool: Any
    pool_path: str
    vm_folder: Any
    datastore: Entity
    image_datastore: Entity
    bridge: PortGroup | None
    container_networks: Mapping[str, PortGroup]
    drs_enabled: bool
    # Whether vSphere starts VMs where it wants without asking.
    drs_automatic: bool


async def locate(session: Session, settings: VsphereSettings) -> Site:
    """Finds everything that is named. NotFoundError or InvalidArgumentError says what there is instead."""
    inventory = await Inventory.read(session)
    chosen = inventory.compute(settings.compute_resource)
    if isinstance(chosen.object, vim.VirtualApp):
        raise InvalidArgumentError(f"{chosen.path} is a vApp: its VMs are in no folder; name a resource pool")
    compute = inventory.compute_resource_of(chosen.object)
    datacenter = inventory.datacenter_of(compute.object)
    paths = ["resourcePool", "host", "datastore", "network"]
    known = (await session.read([compute.object], paths)).get(compute.object, {})
    folder = (await session.read([datacenter.object], ["vmFolder"])).get(datacenter.object, {}).get("vmFolder")
    if folder is None or known.get("resourcePool") is None:
        raise DriverError(f"the account may not see the VMs of {datacenter.path}: it needs System.Read there")
    stores = {
        option: _datastore(inventory, datacenter, known.get("datastore", ()), option, name)
        for option, name in (
            ("--datastore", settings.datastore),
            ("--image-datastore", settings.image_datastore or settings.datastore),
        )
    }
    bridge, networks = await _networks(session, settings, inventory, datacenter.object, known.get("network", ()))
    drs_enabled, drs_automatic = await _drs(session, compute.object)
    host = chosen.object if isinstance(chosen.object, vim.HostSystem) else None
    return Site(
        datacenter=datacenter,
        compute=compute,
        host=host,
        hosts=tuple(known.get("host", ())) if host is None else (host,),
        parent_pool=chosen.object if isinstance(chosen.object, vim.ResourcePool) else known["resourcePool"],
        pool_path=(chosen if isinstance(chosen.object, vim.ResourcePool) else compute).path,
        vm_folder=folder,
        datastore=stores["--datastore"],
        image_datastore=stores["--image-datastore"],
        bridge=bridge,
        container_networks=networks,
        drs_enabled=drs_enabled,
        drs_automatic=drs_automatic,
    )


def _datastore(inventory: Inventory, datacenter: Entity, reachable: Any, option: str, wanted: str | None) -> Entity:
    stores = inventory.all(vim.Datastore, datacenter.object)
    usable = [entity for entity in stores if entity.object in reachable]
    if wanted is not None:
        _refuse_what_is_no_datastore(inventory, datacenter, stores, usable, option, wanted)
    return choose("datastore", option, usable, wanted)


def _refuse_what_is_no_datastore(
    inventory: Inventory, datacenter: Entity, stores: list[Entity], usable: list[Entity], option: str, wanted: str
) -> None:
    """Better words than that there is none."""
    if any(entity.is_meant_by(wanted) for entity in usable):
        return
    for entity in stores:
        if entity.is_meant_by(wanted):
            raise InvalidArgumentError(f"{option}: no host of the compute resource has the datastore {entity.path}")
    for entity in inventory.all(vim.StoragePod, datacenter.object):
        if entity.is_meant_by(wanted):
            raise InvalidArgumentError(f"{option}: {entity.path} is a datastore cluster; name one of its datastores")


async def _networks(
    session: Session, settings: VsphereSettings, inventory: Inventory, datacenter: Any, reachable: Any
) -> tuple[PortGroup | None, dict[str, PortGroup]]:
    wanted = [(f"--container-network {name}", group) for name, group in settings.container_networks]
    if settings.bridge_network is not None:
        wanted.insert(0, ("--bridge-network", settings.bridge_network))
    found = await port_groups.find(session, inventory, datacenter, reachable, wanted)
    bridge = found.pop(0) if settings.bridge_network is not None else None
    named = zip(settings.container_networks, found, strict=True)
    networks = {name: group for (name, _), group in named}
    for name, group in networks.items():
        if bridge is not None and group.network == bridge.network:
            raise InvalidArgumentError(f"--container-network {name}: {group.name} is the bridge network already")
    return bridge, networks


async def _drs(session: Session, compute: Any) -> tuple[bool, bool]:
    """Whether DRS is on, and whether it acts by itself."""
    if not isinstance(compute, vim.ClusterComputeResource):
        return False, False
    found = (await session.read([compute], [_CONFIGURATION])).get(compute, {}).get(_CONFIGURATION)
    config = getattr(found, "drsConfig", None)
    if config is None or not config.enabled:
        return False, False
    return True, config.defaultVmBehavior in (None, "fullyAutomated", "partiallyAutomated")
