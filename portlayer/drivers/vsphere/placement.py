"""Where a VCH's VMs go: what it makes of its own at the site that an administrator named.

On vCenter a VCH has a VM folder of its own, in the datacenter's, and a resource pool of its own, in the compute
resource's or in the pool that was named. Both have the VCH's name and the beginning of its id, so that VCHs of the same
name do not meet, and the same names find them again. What vSphere does not have there is not missed unless it was asked
for: ESXi has no folders, a cluster without DRS no pools.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from portlayer.drivers.vsphere import resource_pool
from portlayer.drivers.vsphere.affinity import AffinityGroup
from portlayer.drivers.vsphere.port_groups import PortGroup
from portlayer.drivers.vsphere.session import Session
from portlayer.drivers.vsphere.settings import VsphereSettings
from portlayer.drivers.vsphere.site import Site, locate
from portlayer.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError, PortLayerError

# What the bridge network is called among containers.
BRIDGE = "bridge"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    """What a driver needs. `folder` and `resource_pool` hold VMs of others too unless they are the VCH's own."""

    name: str
    site: Site
    resource_pool: Any
    owns_pool: bool
    folder: Any
    owns_folder: bool
    affinity: AffinityGroup | None

    @property
    def datacenter(self) -> Any:
        return self.site.datacenter.object

    @property
    def compute(self) -> Any:
        return self.site.compute.object

    @property
    def datastore(self) -> Any:
        return self.site.datastore.object

    @property
    def image_datastore(self) -> Any:
        return self.site.image_datastore.object

    @property
    def networks(self) -> dict[str, PortGroup]:
        """All that containers can be on, by the name that they have for containers."""
        bridge = {BRIDGE: self.site.bridge} if self.site.bridge is not None else {}
        return {**bridge, **self.site.container_networks}

    @property
    def drs_enabled(self) -> bool:
        """Whether VMs are started by the datacenter's PowerOnMultiVM_Task, which asks DRS for a host."""
        return self.site.drs_enabled and self.site.host is None

    @property
    def scope(self) -> Any:
        """What the VCH's VMs are found in: its folder, or its pool where there are no folders."""
        return self.folder if self.owns_folder or not self.owns_pool else self.resource_pool

    @property
    def own_pool(self) -> Any | None:
        """Where VMs of the VCH are that were moved out of `scope` and nowhere else; None without such a pool."""
        return self.resource_pool if self.owns_pool and self.resource_pool != self.scope else None


def own_name(name: str, vch_id: str) -> str:
    """What folder, pool and group of a VCH are called."""
    return f"{name}-{vch_id[:12]}"


async def establish(session: Session, settings: VsphereSettings, name: str) -> Placement:
    """Makes what the VCH owns, or finds it again. `name` is its `own_name`. May be repeated.

    InvalidArgumentError when what is asked for cannot be had there.
    """
    site = await locate(session, settings)
    pools = site.drs_enabled or not isinstance(site.compute.object, vim.ClusterComputeResource)
    if settings.limits.any and not pools:
        raise InvalidArgumentError(
            f"limits, reservations and shares need a resource pool, and the cluster {site.compute.path} has none"
            " without DRS: turn DRS on, or leave them out"
        )
    group = _affinity(session, settings, site, name)
    pool = site.parent_pool
    if pools:
        pool = await resource_pool.ensure(session, site.parent_pool, name, settings.limits)
    folder = await _ensure_folder(session, site.vm_folder, name) if session.is_vcenter else site.vm_folder
    if group is not None:
        try:
            await group.ensure()
        except PortLayerError as error:  # it is made with the first VM then
            _log.warning("%s", error)
    return Placement(name, site, pool, pools, folder, session.is_vcenter, group)


async def dismantle(session: Session, placement: Placement) -> list[str]:
    """Removes what the VCH owns, as far as it is empty; gives back what stays, and why, in words."""
    stays = []
    if placement.affinity is not None:
        try:
            await placement.affinity.remove()
        except PortLayerError as error:  # an administrator's rule may have it
            stays.append(f"the VM group {placement.name}: {error}")
    if placement.owns_folder and not await _remove_folder_if_empty(session, placement.folder, placement.name):
        stays.append(f"the VM folder {placement.name}: it is not empty")
    if placement.owns_pool and not await resource_pool.remove_if_empty(
        session, placement.resource_pool, placement.name
    ):
        stays.append(f"the resource pool {placement.name}: it is not empty")
    return stays


def _affinity(session: Session, settings: VsphereSettings, site: Site, name: str) -> AffinityGroup | None:
    if not settings.affinity_group:
        return None
    if not site.drs_enabled:
        raise InvalidArgumentError(f"--affinity-group: {site.compute.path} has no DRS, which would heed the group")
    return AffinityGroup(session, site.compute.object, name)


async def _ensure_folder(session: Session, parent: Any, name: str) -> Any:
    folder = await _find_folder(session, parent, name)
    if folder is None:
        try:
            return await session.call(parent.CreateFolder, name, what=f"making the VM folder {name}")
        except AlreadyExistsError:  # an answer to the same call was lost
            folder = await _find_folder(session, parent, name)
            if folder is None:
                raise
    return folder


async def _find_folder(session: Session, parent: Any, name: str) -> Any | None:
    children = (await session.read([parent], ["childEntity"])).get(parent, {}).get("childEntity", ())
    names = await session.read([child for child in children if isinstance(child, vim.Folder)], ["name"])
    return next((folder for folder, known in names.items() if known.get("name") == name), None)


async def _remove_folder_if_empty(session: Session, folder: Any, name: str) -> bool:
    """Whether it is gone. Destroying a folder destroys the VMs in it: it is asked for again right before."""
    found = (await session.read([folder], ["childEntity"])).get(folder)
    if found is None:
        return True
    if found.get("childEntity"):
        return False
    with contextlib.suppress(NotFoundError):
        await session.run(folder.Destroy_Task, what=f"removing the VM folder {name}")
    return True
