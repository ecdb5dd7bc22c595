"""On which host a VM is made, where there is no DRS to choose one.

CreateVM_Task may leave it out for a host by itself and for a cluster with DRS; other clusters want one (vSphere Web
Services API, Folder). The VM is powered on there, too.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from pyVmomi import vim

from portlayer.drivers.vsphere.session import Session
from portlayer.drivers.vsphere.site import Site
from portlayer.errors import ExhaustedError

_STATE, _MAINTENANCE = "runtime.connectionState", "runtime.inMaintenanceMode"
_MEMORY, _USED_MIB = "hardware.memorySize", "summary.quickStats.overallMemoryUsage"
_MIB = 1 << 20


async def for_new_vm(session: Session, site: Site) -> Any:
    """The host for CreateVM_Task; None where vSphere chooses. ExhaustedError when no host can have the VM.

    At random, the more free memory the likelier: VMs that are made at once do not all end up on one host.
    """
    if site.host is not None or site.drs_enabled or not isinstance(site.compute.object, vim.ClusterComputeResource):
        return site.host
    found = await session.read(site.hosts, [_STATE, _MAINTENANCE, _MEMORY, _USED_MIB, "datastore", "network"])
    stores = {site.datastore.object, site.image_datastore.object}
    usable = {host: known for host, known in found.items() if _runs(known) and _has(known, "datastore", stores)}
    if not usable:
        raise ExhaustedError(
            f"no host of {site.compute.path} is connected, out of maintenance and has the datastores of this host"
        )
    groups = {group.network for group in (site.bridge, *site.container_networks.values()) if group is not None}
    best = {host: known for host, known in usable.items() if _has(known, "network", groups)} or usable
    return random.choices(list(best), [_free_mib(known) for known in best.values()])[0]


def _runs(known: Mapping[str, Any]) -> bool:
    return str(known.get(_STATE)) == "connected" and not known.get(_MAINTENANCE)


def _has(known: Mapping[str, Any], path: str, wanted: set[Any]) -> bool:
    return wanted <= set(known.get(path, ()))


def _free_mib(known: Mapping[str, Any]) -> int:
    """At least 1: a host that is full may still be the only one."""
    return max(1, int(known.get(_MEMORY, 0)) // _MIB - int(known.get(_USED_MIB) or 0))
