"""Whether a container's VM is still as the VCH made it, or has something of an administrator's that is to stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyVmomi import vim

from portlayer.drivers.base import MachineSpec
from portlayer.drivers.shapes import memory_of_template
from portlayer.drivers.vsphere import config_spec, operations

# What an administrator may set of a VM's share of its host.
ALLOCATIONS = ("config.cpuAllocation", "config.memoryAllocation")
# What `is_as_made` wants to know.
PATHS = (operations.DEVICES, "config.hardware.memoryMB", "config.hardware.numCPU", *ALLOCATIONS)
_OWN_DISKS = 2


def is_as_made(found: Mapping[str, Any], spec: MachineSpec, networks: Sequence[Any]) -> bool:
    """Whether a VM is still what `config_spec.describe` asked for, or the clone that its container moved into.

    `found` has its PATHS; a VM whose configuration cannot be read is not.
    `networks`: what its network cards were backed by.
    """
    memory = {config_spec.memory_mib(spec.memory_bytes), config_spec.memory_mib(memory_of_template(spec.memory_bytes))}
    as_large = found.get("config.hardware.memoryMB") in memory and found.get("config.hardware.numCPU") == spec.cpus
    devices = list(found.get(operations.DEVICES, ()))
    disks = [one for one in devices if isinstance(one, vim.vm.device.VirtualDisk)]
    plugged = [card.backing for card in config_spec.cards(devices)]
    on_networks = len(plugged) == len(networks) and all(map(_is_same_network, plugged, networks))
    shares = all(_is_default(found.get(path)) for path in ALLOCATIONS)
    return as_large and len(disks) <= _OWN_DISKS and on_networks and shares


def _is_same_network(backing: Any, wanted: Any) -> bool:
    """Of backings of network cards. What vSphere fills in does not count: a switch's port, a port group's new name."""
    if type(backing) is not type(wanted):
        return False
    if isinstance(wanted, vim.vm.device.VirtualEthernetCard.DistributedVirtualPortBackingInfo):
        return (backing.port.switchUuid, backing.port.portgroupKey) == (
            wanted.port.switchUuid,
            wanted.port.portgroupKey,
        )
    if isinstance(wanted, vim.vm.device.VirtualEthernetCard.OpaqueNetworkBackingInfo):
        return bool(backing.opaqueNetworkId == wanted.opaqueNetworkId)
    if backing.network is not None and wanted.network is not None:
        return bool(backing.network == wanted.network)
    return bool(backing.deviceName == wanted.deviceName)


def _is_default(allocation: Any) -> bool:
    """Of vim.ResourceAllocationInfo: no limit, no reservation, no more nor less shares than others."""
    if allocation is None:
        return True
    shares = allocation.shares is None or allocation.shares.level == vim.SharesInfo.Level.normal
    return shares and (allocation.limit in (None, -1)) and not allocation.reservation
