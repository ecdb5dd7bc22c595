"""A VM's hardware, read from its configuration in the inventory. Pure: nothing here opens or asks anything.

ESXi's numbering is kept: a guest finds its disks by the target on the SCSI bus, its serial ports by their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyVmomi import vim

# What has to be known of a VM, as property paths.
PATHS = (
    "name",
    "runtime.powerState",
    "runtime.host",
    "summary.runtime.bootTime",
    "config.uuid",
    "config.instanceUuid",
    "config.firmware",
    "config.files.vmPathName",
    "config.hardware.numCPU",
    "config.hardware.memoryMB",
    "config.hardware.device",
    "config.extraConfig",
)
# Set by the front in place of vCenter: the VM whose memory and devices this one begins with (its moref).
FORKED_FROM = "lab.forkedFrom"
_APPEND = "answer.msg.serial.file.open"
# What a disk in these modes was given is thrown away at power-off.
_THROWN_AWAY = ("independent_nonpersistent", "nonpersistent")


class LabError(Exception):
    """What ESXi would not power on either."""


@dataclass(frozen=True)
class Disk:
    """A disk at a target of a PVSCSI adapter. `chain`: its file, then those it was made a delta of.

    A delta whose changes are thrown away holds nothing, ever: it is left out of its chain.
    """

    bus: int
    unit: int
    chain: tuple[Path, ...]
    thrown_away: bool

    @property
    def place(self) -> tuple[int, int]:
        return self.bus, self.unit

    @property
    def id(self) -> str:
        return f"disk-{self.bus}-{self.unit}"


@dataclass(frozen=True)
class Nic:
    """A VMXNET3 adapter; `unit` is its place on the PCI bus, 7 and up."""

    unit: int
    mac: str

    @property
    def id(self) -> str:
        return f"nic-{self.unit}"


@dataclass(frozen=True)
class FilePort:
    """A serial port whose output goes to a file."""

    file: Path


@dataclass(frozen=True)
class NetworkPort:
    """A serial port that dials out to a concentrator, while it is plugged in."""

    service_uri: str
    proxy_uri: str
    plugged_in: bool = True


@dataclass(frozen=True)
class Hardware:
    """All of it. `ports` in the guest's order, None where nothing is connected; `memory_mb` in MiB."""

    name: str
    uuid: str
    instance_uuid: str
    cpus: int
    memory_mb: int
    efi: bool
    cdrom: Path | None
    buses: tuple[int, ...]
    disks: tuple[Disk, ...]
    nics: tuple[Nic, ...]
    ports: tuple[FilePort | NetworkPort | None, ...]
    append_to_files: bool = False
    forked_from: str | None = None
    # Whether the CD-ROM is at an AHCI adapter instead of at an IDE channel.
    sata: bool = False
    extra: Mapping[str, str] = field(default_factory=dict, compare=False)


def hardware_of(values: Mapping[str, Any], datastores: Mapping[str, Path]) -> Hardware:
    """From the properties at PATHS; `datastores` by name. LabError when the lab cannot build such a VM."""
    devices = list(values["config.hardware.device"])
    extra = {option.key: str(option.value) for option in values.get("config.extraConfig", ())}
    adapters = {d.key: d.busNumber for d in devices if isinstance(d, vim.vm.device.ParaVirtualSCSIController)}
    return Hardware(
        name=values["name"],
        uuid=values["config.uuid"],
        instance_uuid=values["config.instanceUuid"],
        cpus=values["config.hardware.numCPU"],
        memory_mb=values["config.hardware.memoryMB"],
        efi=values.get("config.firmware") == "efi",
        cdrom=_cdrom(devices, datastores),
        buses=tuple(sorted(adapters.values())),
        disks=tuple(_disks(devices, adapters, datastores)),
        nics=tuple(
            Nic(d.unitNumber, d.macAddress) for d in devices if isinstance(d, vim.vm.device.VirtualEthernetCard)
        ),
        ports=tuple(_port(d, datastores, values) for d in devices if isinstance(d, vim.vm.device.VirtualSerialPort)),
        append_to_files=extra.get(_APPEND, "").lower() == "append",
        forked_from=extra.get(FORKED_FROM) or None,
        sata=any(isinstance(device, vim.vm.device.VirtualAHCIController) for device in devices),
        extra=extra,
    )


def local_path(datastore_path: str, datastores: Mapping[str, Path]) -> Path:
    """`[NAME] DIR/FILE` as a file of this machine."""
    name, bracket, path = datastore_path.removeprefix("[").partition("] ")
    if not datastore_path.startswith("[") or not bracket or name not in datastores:
        raise LabError(f"{datastore_path!r} is on no datastore of the lab: {', '.join(sorted(datastores))}")
    root = datastores[name].resolve()
    found = (root / path).resolve()
    if not found.is_relative_to(root):
        raise LabError(f"{datastore_path!r} leaves its datastore")
    return found


def _cdrom(devices: list[Any], datastores: Mapping[str, Path]) -> Path | None:
    drives = [d for d in devices if isinstance(d, vim.vm.device.VirtualCdrom)]
    isos = [d.backing for d in drives if isinstance(d.backing, vim.vm.device.VirtualCdrom.IsoBackingInfo)]
    return local_path(isos[0].fileName, datastores) if isos else None


def _disks(devices: list[Any], adapters: Mapping[int, int], datastores: Mapping[str, Path]) -> list[Disk]:
    disks = []
    for device in devices:
        if not isinstance(device, vim.vm.device.VirtualDisk):
            continue
        if device.controllerKey not in adapters:
            raise LabError(f"disk {device.key} is on controller {device.controllerKey}, which is no PVSCSI adapter")
        chain, backing = [], device.backing
        while backing is not None:
            chain.append(local_path(backing.fileName, datastores))
            backing = backing.parent
        thrown_away = device.backing.diskMode in _THROWN_AWAY
        if thrown_away and len(chain) > 1:
            del chain[0]
        disks.append(Disk(adapters[device.controllerKey], device.unitNumber, tuple(chain), thrown_away))
    return disks


def _port(device: Any, datastores: Mapping[str, Path], values: Mapping[str, Any]) -> FilePort | NetworkPort | None:
    backing, plug = device.backing, device.connectable
    running = values["runtime.powerState"] == "poweredOn"
    plugged_in = plug is None or bool(plug.connected if running else plug.startConnected)
    if isinstance(backing, vim.vm.device.VirtualSerialPort.FileBackingInfo):
        return FilePort(local_path(backing.fileName, datastores)) if plugged_in else None
    if isinstance(backing, vim.vm.device.VirtualSerialPort.URIBackingInfo) and backing.direction == "client":
        return NetworkPort(backing.serviceURI, backing.proxyURI or backing.serviceURI, plugged_in)
    raise LabError(f"the lab has no serial port with backing {type(backing).__name__}")
