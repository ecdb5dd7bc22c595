"""A container's VM as vSphere is told of it: pure functions from a MachineSpec to ConfigSpecs.

    PVSCSI   unit 0  the image: a child of the image's disk, independent and non-persistent
             unit 1  the writable disk: a child of an empty one
    SATA     0       CD-ROM with the guest image: firmware reads it faster than by IDE
    serial   0       console, into console.log beside the VM
             1       the agent's channel, through the concentrator
    VMXNET3          one for each network of the container's

Both disks are children (delta disks): an administrator who deletes a container's VM must not delete the image that
others use; removal.py says what vCenter does all the same. The writable disk has a path of its own choice, since it
moves with the container from VM to VM when that starts in clones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from portlayer.drivers import ext4
from portlayer.drivers.base import MachineSpec
from portlayer.drivers.vsphere.extra_config import Boot
from portlayer.errors import ExhaustedError

GUEST_ID = "vmwarePhoton64Guest"
# Of ESXi 6.7, the oldest that a VCH runs on: a VM can go to every host of a cluster, whatever that makes by default.
HARDWARE_VERSION = "vmx-14"
IMAGE_UNIT, WRITABLE_UNIT = 0, 1
CONSOLE_LOG = "console.log"
SERVICE = "vch://"
_MIB = 1 << 20
_KIB = 1 << 10
# "The memory size must be a multiple of 4 MB" (vSphere Virtual Machine Administration).
_MEMORY_GRAIN = 4 * _MIB
_MAX_NAME = 80
_MAX_CARDS = 10
# Keys of devices that are being added are negative, and stand for one another within one request. Network cards have
# those from _NIC downwards.
_SCSI, _IMAGE, _WRITABLE, _CDROM, _CONSOLE, _CHANNEL, _NIC, _SATA = -1, -2, -3, -4, -5, -6, -7, -100
# Every VM has this controller without being asked.
_SIO = 400
_Operation = vim.vm.device.VirtualDeviceSpec.Operation
_FileOperation = vim.vm.device.VirtualDeviceSpec.FileOperation
_DiskMode = vim.vm.device.VirtualDiskOption.DiskMode
# Of every VM of ours.
_OPTIONS = {
    "disk.EnableUUID": "TRUE",
    # The guest may read guestinfo, not write it.
    "isolation.tools.setInfo.disable": "TRUE",
    # Nobody is there to be asked whether the console goes on in the file of the run before.
    "answer.msg.serial.file.open": "Append",
    # Nor whether a VM at another path, as when its datastore was mounted anew, is a copy (msg.uuid.altered).
    "uuid.action": "keep",
}


@dataclass(frozen=True)
class Hardware:
    """What VMs of all kinds have. `datastore` is where the VM itself goes, by name.

    `networks` is what its network cards are backed by, one each.
    """

    datastore: str
    boot: Boot
    token: str
    networks: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Parent:
    """A disk that others are children of, and as large as."""

    path: str
    capacity_bytes: int


@dataclass(frozen=True)
class Disks:
    """A container's, as "[datastore] path": the image's and the empty one are parents, `writable` is made."""

    image: Parent
    empty: str
    writable: str


def describe(
    config: vim.vm.ConfigSpec,
    spec: MachineSpec,
    name: str,
    hardware: Hardware,
    disks: Disks,
    uuid: str,
    values: Mapping[str, str],
) -> None:
    """A container's whole VM, into `config`."""
    _describe(config, spec.memory_bytes, spec.cpus, name, hardware, uuid, values)
    writable = _child_disk(
        _WRITABLE,
        Parent(disks.empty, ext4.whole_size(spec.writable_disk_bytes)),
        disks.writable,
        _SCSI,
        WRITABLE_UNIT,
        _DiskMode.independent_persistent,
    )
    config.deviceChange += [image_disk(disks.image, _SCSI), writable]


def parent(
    memory_bytes: int, cpus: int, name: str, hardware: Hardware, uuid: str, values: Mapping[str, str], annotation: str
) -> vim.vm.ConfigSpec:
    """A VM to be cloned from: as a container's, without disks. Its clones get theirs, and network cards, afterwards."""
    config: vim.vm.ConfigSpec = vim.vm.ConfigSpec(annotation=annotation)
    _describe(config, memory_bytes, cpus, name, hardware, uuid, values)
    return config


def display_name(template: str, container: str, container_id: str) -> str:
    """The VM's name in vCenter. vSphere escapes '/', '\\' and '%' in names itself, so they do not get there."""
    short = container_id[:12]
    room = _MAX_NAME - len(template.format(name="", id=short))
    clean = "".join("_" if letter in "/\\%" else letter for letter in container)
    return template.format(name=clean[: max(0, room)], id=short)


def console_log(datastore: str, name: str) -> str:
    """Where the console of a VM of that name is kept: beside it, in the directory that vSphere gives the VM's name."""
    return f"[{datastore}] {name}/{CONSOLE_LOG}"


def console_of(devices: list[Any]) -> str | None:
    """Where a VM with these devices keeps its console; None when an administrator has put something else there."""
    ports = [one for one in devices if isinstance(one, vim.vm.device.VirtualSerialPort) and not is_channel(one)]
    paths = [str(getattr(port.backing, "fileName", "")) for port in ports]
    return next((path for path in paths if path.endswith(f"/{CONSOLE_LOG}")), None)


def options(values: Mapping[str, str]) -> list[vim.option.OptionValue]:
    return [vim.option.OptionValue(key=key, value=value) for key, value in values.items()]


def image_disk(image: Parent, controller: int) -> vim.vm.device.VirtualDeviceSpec:
    """The image's disk, for the controller of that key."""
    return _child_disk(_IMAGE, image, "", controller, IMAGE_UNIT, _DiskMode.independent_nonpersistent)


def backing_at(path: str) -> Any:
    """The backing of a writable disk of which only the path is known."""
    flat: Any = vim.vm.device.VirtualDisk.FlatVer2BackingInfo
    return flat(fileName=path, diskMode=_DiskMode.independent_persistent)


def existing_disk(backing: Any, controller: int) -> vim.vm.device.VirtualDeviceSpec:
    """A writable disk that another VM had, for the controller of that key."""
    return _added(
        vim.vm.device.VirtualDisk(key=_WRITABLE, controllerKey=controller, unitNumber=WRITABLE_UNIT, backing=backing)
    )


def scsi_controller_key(devices: list[Any]) -> int | None:
    """Key of a VM's PVSCSI controller; None when somebody has removed it."""
    kind = vim.vm.device.ParaVirtualSCSIController
    return next((device.key for device in devices if isinstance(device, kind)), None)


def disk_at(devices: list[Any], unit: int) -> Any:
    """The disk in that place of the PVSCSI controller; None when there is none."""
    controller = scsi_controller_key(devices)
    kind = vim.vm.device.VirtualDisk
    disks = [device for device in devices if isinstance(device, kind)]
    return next((disk for disk in disks if (disk.controllerKey, disk.unitNumber) == (controller, unit)), None)


def children(devices: list[Any]) -> list[Any]:
    """A VM's disks that share with others what they began as. Snapshots make children too, not of independent disks."""
    disks: list[Any] = [device for device in devices if isinstance(device, vim.vm.device.VirtualDisk)]
    with_parents = [disk for disk in disks if getattr(disk.backing, "parent", None) is not None]
    return [disk for disk in with_parents if str(disk.backing.diskMode).startswith("independent")]


def taken_off(device: Any) -> vim.vm.device.VirtualDeviceSpec:
    """The device is removed; files of a disk stay, which are removed by themselves (removal.py)."""
    return vim.vm.device.VirtualDeviceSpec(operation=_Operation.remove, device=device)


def nics(backings: Sequence[Any]) -> list[vim.vm.device.VirtualDeviceSpec]:
    """New network cards. ExhaustedError when no VM has room for so many."""
    if len(backings) > _MAX_CARDS:
        raise ExhaustedError(
            f"a VM has room for {_MAX_CARDS} network cards, not for {len(backings)}: leave networks out"
        )
    card: Any = vim.vm.device.VirtualVmxnet3
    keys = range(_NIC, _NIC - len(backings), -1)
    pairs = zip(keys, backings, strict=True)
    return [_added(card(key=key, backing=backing, connectable=_connected())) for key, backing in pairs]


def cards(devices: list[Any]) -> list[Any]:
    """A VM's network cards, in their order."""
    return [device for device in devices if isinstance(device, vim.vm.device.VirtualEthernetCard)]


def reboot_edits(devices: list[Any], boot: Boot) -> list[vim.vm.device.VirtualDeviceSpec]:
    """Changes to a VM's devices that make it boot from and dial what `boot` says."""
    edits = []
    for device in devices:
        if isinstance(device, vim.vm.device.VirtualCdrom):
            device.backing = _iso(boot.guest_iso)
            device.connectable = _connected()
        elif is_channel(device):
            device.backing.proxyURI = boot.proxy_uri
        else:
            continue
        edits.append(vim.vm.device.VirtualDeviceSpec(operation=_Operation.edit, device=device))
    return edits


def console_edits(devices: list[Any], name: str) -> list[vim.vm.device.VirtualDeviceSpec]:
    """Gives an instant clone of that name a console of its own: ports backed by files may be changed on the way."""
    edits = []
    for device in devices:
        if isinstance(device, vim.vm.device.VirtualSerialPort) and not is_channel(device):
            backing: Any = device.backing
            datastore = str(backing.fileName).partition("]")[0].removeprefix("[")
            backing.fileName = console_log(datastore, name)
            edits.append(vim.vm.device.VirtualDeviceSpec(operation=_Operation.edit, device=device))
    return edits


def is_channel(device: Any) -> bool:
    """Whether it is the serial port of the agent's channel."""
    if not isinstance(device, vim.vm.device.VirtualSerialPort):
        return False
    return isinstance(device.backing, vim.vm.device.VirtualSerialPort.URIBackingInfo)


def connection_edit(device: Any, *, connected: bool) -> vim.vm.device.VirtualDeviceSpec:
    """Plugs a device of a running VM in, or out."""
    device.connectable = _connected()
    device.connectable.connected = connected
    return vim.vm.device.VirtualDeviceSpec(operation=_Operation.edit, device=device)


def _describe(
    config: Any,
    memory_bytes: int,
    cpus: int,
    name: str,
    hardware: Hardware,
    uuid: str,
    values: Mapping[str, str],
) -> None:
    config.name = name
    config.guestId = GUEST_ID
    config.version = HARDWARE_VERSION
    config.instanceUuid = config.uuid = uuid
    config.memoryMB = memory_mib(memory_bytes)
    config.numCPUs = cpus
    config.numCoresPerSocket = 1
    config.firmware = vim.vm.GuestOsDescriptor.FirmwareType.bios
    config.files = vim.vm.FileInfo(vmPathName=f"[{hardware.datastore}]")
    config.bootOptions = vim.vm.BootOptions(bootDelay=0, bootOrder=[vim.vm.BootOptions.BootableCdromDevice()])
    config.extraConfig = options({**_OPTIONS, **values})
    config.deviceChange = [_scsi_controller(), *_boot_devices(hardware, name), *nics(hardware.networks)]


def memory_mib(memory_bytes: int) -> int:
    """At least so much, as a VM can have it."""
    return -(-memory_bytes // _MEMORY_GRAIN) * _MEMORY_GRAIN // _MIB


def _scsi_controller() -> vim.vm.device.VirtualDeviceSpec:
    return _added(
        vim.vm.device.ParaVirtualSCSIController(
            key=_SCSI, busNumber=0, sharedBus=vim.vm.device.VirtualSCSIController.Sharing.noSharing
        )
    )


def _child_disk(
    key: int, parent: Parent, path: str, controller: int, unit: int, mode: str
) -> vim.vm.device.VirtualDeviceSpec:
    """`path` empty: vSphere chooses one in the VM's directory."""
    flat: Any = vim.vm.device.VirtualDisk.FlatVer2BackingInfo
    backing = flat(fileName=path, diskMode=mode, thinProvisioned=True, parent=flat(fileName=parent.path, diskMode=mode))
    disk: Any = vim.vm.device.VirtualDisk(key=key, controllerKey=controller, unitNumber=unit, backing=backing)
    disk.capacityInKB = parent.capacity_bytes // _KIB
    return _added(disk, _FileOperation.create)


def _boot_devices(hardware: Hardware, name: str) -> list[vim.vm.device.VirtualDeviceSpec]:
    cdrom = vim.vm.device.VirtualCdrom(
        key=_CDROM,
        controllerKey=_SATA,
        unitNumber=0,
        backing=_iso(hardware.boot.guest_iso),
        connectable=_connected(),
    )
    port: Any = vim.vm.device.VirtualSerialPort
    console = port(
        key=_CONSOLE,
        controllerKey=_SIO,
        unitNumber=0,
        backing=port.FileBackingInfo(fileName=console_log(hardware.datastore, name)),
        yieldOnPoll=True,
        connectable=_connected(),
    )
    channel = port(
        key=_CHANNEL,
        controllerKey=_SIO,
        unitNumber=1,
        backing=port.URIBackingInfo(
            serviceURI=f"{SERVICE}{hardware.token}",
            direction="client",
            proxyURI=hardware.boot.proxy_uri,
        ),
        yieldOnPoll=True,
        connectable=_connected(),
    )
    sata = vim.vm.device.VirtualAHCIController(key=_SATA, busNumber=0)
    return [_added(sata), _added(cdrom), _added(console), _added(channel)]


def _iso(path: str) -> vim.vm.device.VirtualCdrom.IsoBackingInfo:
    return vim.vm.device.VirtualCdrom.IsoBackingInfo(fileName=path)


def _connected() -> vim.vm.device.VirtualDevice.ConnectInfo:
    return vim.vm.device.VirtualDevice.ConnectInfo(startConnected=True, allowGuestControl=False, connected=True)


def _added(device: Any, file_operation: str | None = None) -> vim.vm.device.VirtualDeviceSpec:
    return vim.vm.device.VirtualDeviceSpec(operation=_Operation.add, device=device, fileOperation=file_operation)
