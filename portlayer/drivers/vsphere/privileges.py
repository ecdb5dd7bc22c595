"""What the account of a VCH has to be allowed, each with where and what for: the least there is to grant.

docs/vsphere.md has this table; a test holds the two together. Facts: vSphere's privilege ids, which the Web Services
API names with its methods; what is not told there (the parts of a reconfiguration, files on datastores) is from vSphere
Security, "Required Privileges for Common Tasks".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from portlayer.drivers.vsphere.session import Session


class Place(StrEnum):
    """The objects that privileges are needed on, in the words of an administrator."""

    VCENTER = "vCenter itself"
    DATACENTER = "datacenter's VM folder, propagating"
    POOL = "cluster, host or resource pool, propagating"
    CLUSTER = "cluster"
    DATASTORE = "each datastore"
    OBJECT_DATASTORE = "each vSAN or vVols datastore"
    IMPORT = "datacenter's VM folder; cluster, host or resource pool; with images on vSAN or vVols"
    NETWORK = "each port group"


@dataclass(frozen=True)
class Privilege:
    """`label` is what vCenter shows. `costs`: what is missing without it, for one that a VCH can do without."""

    id: str
    label: str
    place: Place
    purpose: str
    costs: str = ""

    @property
    def required(self) -> bool:
        return not self.costs


# For ManagedByInfo in a VM's configuration.
MARK: Final = "VirtualMachine.Config.ManagedBy"
_VM = "Virtual machine > "
_CHANGE = f"{_VM}Change Configuration > "

LEAST: Final = (
    Privilege("Folder.Create", "Folder > Create folder", Place.DATACENTER, "the VCH's own folder"),
    Privilege("Folder.Delete", "Folder > Delete folder", Place.DATACENTER, "`vch down --force`"),
    Privilege(
        "VirtualMachine.Inventory.Create", f"{_VM}Edit Inventory > Create new", Place.DATACENTER, "`docker create`"
    ),
    Privilege("VirtualMachine.Inventory.Delete", f"{_VM}Edit Inventory > Remove", Place.DATACENTER, "`docker rm`"),
    Privilege(
        "VirtualMachine.Inventory.CreateFromExisting",
        f"{_VM}Edit Inventory > Create from existing",
        Place.DATACENTER,
        "instant clone",
        "no instant clone: every start boots a kernel",
    ),
    Privilege(
        "VirtualMachine.Provisioning.Clone",
        f"{_VM}Provisioning > Clone virtual machine",
        Place.DATACENTER,
        "instant clone",
        "no instant clone: every start boots a kernel",
    ),
    Privilege("VirtualMachine.Interact.PowerOn", f"{_VM}Interaction > Power on", Place.DATACENTER, "`docker start`"),
    Privilege("VirtualMachine.Interact.PowerOff", f"{_VM}Interaction > Power off", Place.DATACENTER, "`docker stop`"),
    Privilege("VirtualMachine.Interact.Suspend", f"{_VM}Interaction > Suspend", Place.DATACENTER, "`docker pause`"),
    Privilege(
        "VirtualMachine.Interact.DeviceConnection",
        f"{_VM}Interaction > Device connection",
        Place.DATACENTER,
        "plugging a serial port in again",
    ),
    Privilege(
        "VirtualMachine.Interact.SetCDMedia",
        f"{_VM}Interaction > Configure CD media",
        Place.DATACENTER,
        "booting from a newer guest image",
    ),
    Privilege(
        "VirtualMachine.Config.AddNewDisk", f"{_CHANGE}Add new disk", Place.DATACENTER, "the disks of a container"
    ),
    Privilege(
        "VirtualMachine.Config.AddExistingDisk",
        f"{_CHANGE}Add existing disk",
        Place.DATACENTER,
        "images, and containers that move into clones",
    ),
    Privilege(
        "VirtualMachine.Config.RemoveDisk",
        f"{_CHANGE}Remove disk",
        Place.DATACENTER,
        "`docker rm`, and containers that move into clones",
    ),
    Privilege(
        "VirtualMachine.Config.AddRemoveDevice",
        f"{_CHANGE}Add or remove device",
        Place.DATACENTER,
        "controllers, network cards, serial ports",
    ),
    Privilege(
        "VirtualMachine.Config.EditDevice",
        f"{_CHANGE}Modify device settings",
        Place.DATACENTER,
        "serial ports, network cards of clones",
    ),
    Privilege(
        "VirtualMachine.Config.AdvancedConfig",
        f"{_CHANGE}Advanced configuration",
        Place.DATACENTER,
        "the container's record, in extraConfig",
    ),
    Privilege("VirtualMachine.Config.CPUCount", f"{_CHANGE}Change CPU count", Place.DATACENTER, "`--cpus`"),
    Privilege("VirtualMachine.Config.Memory", f"{_CHANGE}Change Memory", Place.DATACENTER, "`--memory`"),
    Privilege("VirtualMachine.Config.Settings", f"{_CHANGE}Change Settings", Place.DATACENTER, "how the VM boots"),
    Privilege("VirtualMachine.Config.Rename", f"{_CHANGE}Rename", Place.DATACENTER, "a clone that becomes a container"),
    Privilege("VirtualMachine.Config.Annotation", f"{_CHANGE}Set annotation", Place.DATACENTER, "the VM's notes"),
    Privilege(
        MARK,
        f"{_CHANGE}Configure managedBy",
        Place.DATACENTER,
        "marking VMs as the VCH's",
        "VMs are not marked as managed by a VCH",
    ),
    Privilege(
        "Global.CancelTask",
        "Global > Cancel task",
        Place.DATACENTER,
        "a power-on that waits for an answer to vSphere's question",
        "it goes on with the answer, long after its `docker start` has failed",
    ),
    Privilege(
        "Resource.AssignVMToPool",
        "Resource > Assign virtual machine to resource pool",
        Place.POOL,
        "`docker create`",
    ),
    Privilege("Resource.CreatePool", "Resource > Create resource pool", Place.POOL, "the VCH's own pool"),
    Privilege("Resource.EditPool", "Resource > Modify resource pool", Place.POOL, "its limits and shares"),
    Privilege("Resource.DeletePool", "Resource > Remove resource pool", Place.POOL, "`vch down --force`"),
    Privilege("Datastore.AllocateSpace", "Datastore > Allocate space", Place.DATASTORE, "disks"),
    Privilege("Datastore.Browse", "Datastore > Browse datastore", Place.DATASTORE, "finding images and disks"),
    Privilege(
        "Datastore.FileManagement",
        "Datastore > Low level file operations",
        Place.DATASTORE,
        "images, the guest image, and disks of containers that are removed",
    ),
    Privilege("Datastore.DeleteFile", "Datastore > Remove file", Place.DATASTORE, "`docker rmi`"),
    Privilege(
        "Datastore.Config",
        "Datastore > Configure datastore",
        Place.OBJECT_DATASTORE,
        "the VCH's directory, which is an object there",
    ),
    Privilege("VApp.Import", "vApp > Import", Place.IMPORT, "sending disks, which come with a VM there"),
    Privilege("Network.Assign", "Network > Assign network", Place.NETWORK, "network cards"),
    Privilege(
        "Host.Inventory.EditCluster",
        "Host > Inventory > Modify cluster",
        Place.CLUSTER,
        "`--affinity-group`",
        "no --affinity-group",
    ),
    Privilege(
        "Extension.Register",
        "Extension > Register extension",
        Place.VCENTER,
        "marking VMs as the VCH's",
        "VMs are not marked as managed by a VCH, unless an administrator's VCH has registered the mark before",
    ),
    Privilege(
        "Global.Licenses", "Global > Licenses", Place.VCENTER, "`vch doctor`", "`vch doctor` cannot see licences"
    ),
)


async def lacking(session: Session, where: Mapping[Place, Sequence[Any]]) -> dict[Any, list[Privilege]]:
    """What the account that is logged in lacks, for each object of `where`; objects that lack nothing are left out."""
    missing: dict[Any, list[Privilege]] = defaultdict(list)
    for place, entities in where.items():
        wanted = {privilege.id: privilege for privilege in LEAST if privilege.place is place}
        for entity, ids in (await not_granted(session, entities, list(wanted))).items():
            missing[entity] += [wanted[id_] for id_ in ids]
    return dict(missing)


async def not_granted(session: Session, entities: Sequence[Any], ids: Sequence[str]) -> dict[Any, list[str]]:
    """Of privileges by their ids, those that the account that is logged in has not on each of these objects, if any."""
    if not entities or not ids:
        return {}
    answers = await session.call(
        session.content.authorizationManager.HasPrivilegeOnEntities,
        list(entities),
        session.account.key,
        list(ids),
        what="asking for the privileges of the account",
    )
    missing = {
        answer.entity: [one.privId for one in answer.privAvailability or () if not one.isGranted]
        for answer in answers or ()
    }
    return {entity: lacks for entity, lacks in missing.items() if lacks}


def table() -> str:
    """The table of docs/vsphere.md: Markdown, by place, required first."""
    rows = ["| on | privilege | id | for | without it |", "| --- | --- | --- | --- | --- |"]
    for place in Place:
        for one in sorted((one for one in LEAST if one.place is place), key=lambda one: not one.required):
            rows.append(f"| {place} | {one.label} | `{one.id}` | {one.purpose} | {one.costs or 'no VCH'} |")
    return "\n".join(rows) + "\n"
