"""Networks that VMs can be plugged into: standard port groups, distributed ones, and NSX segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from portlayer.drivers.vsphere.inventory import Inventory, choose
from portlayer.drivers.vsphere.session import Session
from portlayer.errors import DriverError, InvalidArgumentError

# Every distributed switch has one for its uplinks, with this tag; no VM may use it.
_UPLINK_TAG = "SYSTEM/DVS.UPLINKTAG"
_Distributed = vim.dvs.DistributedVirtualPortgroup
_Card = vim.vm.device.VirtualEthernetCard


@dataclass(frozen=True)
class PortGroup:
    """A network, and what a VM's network card is backed by to be on it."""

    name: str
    path: str
    network: Any
    backing: Any


async def find(
    session: Session, inventory: Inventory, datacenter: Any, reachable: Sequence[Any], wanted: Sequence[tuple[str, str]]
) -> list[PortGroup]:
    """The port groups named in `wanted`, pairs of the option and the name that was given there.

    `reachable`: networks that the compute resource has. NotFoundError or InvalidArgumentError, with what there is, for
    a name that does not fit one network.
    """
    if not wanted:
        return []
    entities = inventory.all(vim.Network, datacenter)
    distributed = [entity.object for entity in entities if isinstance(entity.object, _Distributed)]
    tags = await session.read(distributed, ["tag"])
    usable = [entity for entity in entities if not _is_uplink(tags.get(entity.object, {}))]
    chosen = []
    for option, name in wanted:
        entity = choose("port group", option, usable, name)
        if entity.object not in reachable:
            raise InvalidArgumentError(f"{option}: no host of the compute resource has the port group {entity.path}")
        chosen.append(entity)
    return [PortGroup(one.name, one.path, one.object, await _backing(session, one.object)) for one in chosen]


async def _backing(session: Session, network: Any) -> Any:
    if isinstance(network, _Distributed):
        return await _distributed_backing(session, network)
    if isinstance(network, vim.OpaqueNetwork):
        summary = (await session.read([network], ["summary"]))[network]["summary"]
        return _Card.OpaqueNetworkBackingInfo(
            opaqueNetworkId=summary.opaqueNetworkId, opaqueNetworkType=summary.opaqueNetworkType
        )
    name = (await session.read([network], ["name"]))[network]["name"]
    return _Card.NetworkBackingInfo(deviceName=name, network=network)


async def _distributed_backing(session: Session, group: Any) -> Any:
    known = (await session.read([group], ["key", "config.distributedVirtualSwitch"])).get(group, {})
    switch = known.get("config.distributedVirtualSwitch")
    uuid = (await session.read([switch], ["uuid"])).get(switch, {}).get("uuid") if switch is not None else None
    if uuid is None:
        raise DriverError(f"the account may not see the distributed switch of the port group {group._moId}")
    connection = vim.dvs.PortConnection(switchUuid=uuid, portgroupKey=known["key"])
    return _Card.DistributedVirtualPortBackingInfo(port=connection)


def _is_uplink(known: dict[str, Any]) -> bool:
    return any(tag.key == _UPLINK_TAG for tag in known.get("tag", ()))
