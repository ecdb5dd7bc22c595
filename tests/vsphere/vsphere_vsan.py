"""A datastore of vSAN in the simulator, and what the simulator does there otherwise than vSAN (README.md).

The simulator has it as soon as the cluster's vSAN is on: directories at the top are named by UUIDs, and it has a
DatastoreNamespaceManager. VMs on it take three hosts.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pyVmomi import vim
from vsphere_plain import outcome
from vsphere_simulator import HOST, Simulator
from vsphere_soap import Call, Reply, envelope, fault_reply

if TYPE_CHECKING:
    from vsphere_front import Forward, Front

DATASTORE = "vsanDatastore"
_ON_IT = f"[{DATASTORE}] "
_REFUSED = 500
_LEASE = re.compile(rb'<returnval[^>]*type="HttpNfcLease"[^>]*>([^<]+)<')
_DISK_FILE = re.compile(rb'<file [^>]*"VmDiskFileInfo"[^>]*>(?:(?!</file>).)*?<path>([^<]+)</path>(?:(?!</file>).)*')
_FOLDER = re.compile(rb"<folderPath>([^<]+)</folderPath>")


def enable(simulator: Simulator) -> None:
    """Switches vSAN on."""
    with simulator.connected() as instance:
        datacenter = instance.RetrieveContent().rootFolder.childEntity[0]
        vsan = vim.vsan.cluster.ConfigInfo(enabled=True)
        cluster = datacenter.hostFolder.childEntity[0]
        outcome(cluster.ReconfigureComputeResource_Task(vim.cluster.ConfigSpecEx(vsanConfig=vsan), True))


def files(simulator: Simulator) -> Path:
    """Where the datastore's are on this machine."""
    return next(simulator.datastore_dir().parent.glob(f"*-{DATASTORE}"))


async def make_directory(front: Front, call: Call, forward: Forward) -> Reply:
    """FileManager makes no directory at the top."""
    top = (call.text("name") or "").partition("] ")[2].partition("/")[0]
    if (call.text("name") or "").startswith(_ON_IT) and not (files(front.simulator) / top).is_dir():
        return fault_reply(vim.fault.CannotCreateFile(msg="Function not implemented", file=top))
    return await forward()


async def convert(front: Front, call: Call, forward: Forward) -> Reply:
    """The simulator takes the slash before the name for an empty name at the top."""
    url, _, name = (call.text("namespaceUrl") or "").removeprefix("ds://").rpartition("/")
    found = await front.controlled(front.control.namespace, f"{url}{name}")
    response = "ConvertNamespacePathToUuidPathResponse"
    return Reply(200, envelope(f'<{response} xmlns="urn:vim25"><returnval>{found}</returnval></{response}>'))


async def import_vapp(front: Front, call: Call, forward: Forward) -> Reply:
    """A name that is taken is refused. Whose disk a lease is for is remembered."""
    folder, name = call.text("folder") or "", call.text("spec", "configSpec", "name") or ""
    if (taken := await front.controlled(front.control.child, folder, name)) is not None:
        return fault_reply(vim.fault.DuplicateName(msg=f"The name '{name}' exists.", name=name, object=taken))
    reply = await forward()
    if found := _LEASE.search(reply.body):
        front.leases[found.group(1).decode()] = folder, name
    return reply


async def told(front: Front, call: Call, forward: Forward) -> Reply:
    """Leases lead here, and not past the front; the browser knows how large disks are."""
    reply = await forward()
    body = reply.body
    if b"/nfc/" in body:
        ours = front.nfc_host or f"{HOST}:{front.port}"
        body = body.replace(f"https://{HOST}:{front.simulator.port}/nfc/".encode(), f"https://{ours}/nfc/".encode())
        thumbprint = f"<sslThumbprint>{front.nfc_thumbprint}</sslThumbprint>".encode()
        body = body.replace(b"<sslThumbprint></sslThumbprint>", thumbprint)
    if b"VmDiskFileInfo" in body and (folder := _FOLDER.search(body)) and folder.group(1).startswith(_ON_IT.encode()):
        directory = files(front.simulator) / folder.group(1).decode().removeprefix(_ON_IT)
        body = _DISK_FILE.sub(lambda one: one.group() + _capacity(directory / one.group(1).decode()), body)
    return Reply(reply.status, body, reply.headers)


def refuses(target: str, method: str) -> Reply | None:
    """Nothing but plain files can be written over HTTPS."""
    url = urlsplit(target)
    if method == "PUT" and DATASTORE in url.query and url.path.endswith(".vmdk"):
        return Reply(_REFUSED, b"Function not implemented", ())
    return None


def received(front: Front, target: str, sent: Path) -> None:
    """The simulator forgets what a lease brings: here it becomes the disk, as QEMU reads it."""
    folder, name = front.leases[unquote(urlsplit(target).path).split("/")[2]]
    vm = front.control.child(folder, name)
    devices = front.control.read(vm, "config.hardware.device")["config.hardware.device"]
    disk = next(one for one in devices if isinstance(one, vim.vm.device.VirtualDisk))
    flat = files(front.simulator) / disk.backing.fileName.removeprefix(_ON_IT).replace(".vmdk", "-flat.vmdk")
    command = ["qemu-img", "convert", "-f", "vmdk", "-O", "raw", str(sent), str(flat)]
    subprocess.run(command, check=True, capture_output=True)


def spool() -> Path:
    with tempfile.NamedTemporaryFile(prefix="nfc-", delete=False) as file:
        return Path(file.name)


def _capacity(descriptor: Path) -> bytes:
    flat = descriptor.with_name(descriptor.name.replace(".vmdk", "-flat.vmdk"))
    return b"<capacityKb>%d</capacityKb>" % (flat.stat().st_size >> 10)
