"""QEMU's command line for a VM of the lab: a machine shaped like VMware's. Pure.

Ids and PCI slots follow from the configuration alone, so that a fork, and the other end of a migration, is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lab_disks import content_file
from lab_hardware import Disk, FilePort, Hardware, LabError, Nic

PROGRAM = "qemu-system-x86_64"
MACHINE_TYPE = "pc-i440fx-7.2"
FIRMWARE_CODE = Path("/usr/share/OVMF/OVMF_CODE.fd")
FIRMWARE_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS.fd")

# 5-level page tables and "fast" string moves are slow under emulation.
_CPU = "max,-la57,-erms,-fsrm"
_FIRST_ADAPTER_SLOT = 0x04
_FIRST_NIC_SLOT, _FIRST_NIC_UNIT = 0x10, 7


def machine_command(
    hardware: Hardware, *, qmp_fd: int, port_fds: Sequence[int], variables: Path, incoming: str | None = None
) -> list[str]:
    """`port_fds`: for each network port, in order, a connected socket; `variables`: this VM's EFI variables.

    `incoming`: where memory and device state come from, as for QEMU's option of that name.
    """
    return [
        *("setpriv", "--pdeathsig", "KILL", "--"),
        PROGRAM,
        *("-name", f"lab-{hardware.name}"),
        *("-machine", f"{MACHINE_TYPE},usb=off"),
        *("-accel", "tcg"),
        *("-cpu", _CPU),
        *("-smp", str(hardware.cpus)),
        *("-m", f"{hardware.memory_mb}M"),
        *("-nodefaults", "-no-user-config"),
        *("-display", "none"),
        *("-uuid", hardware.uuid),
        *_smbios(),
        *_firmware(hardware, variables),
        *("-chardev", f"socket,id=qmp,fd={qmp_fd}"),
        *("-mon", "chardev=qmp,mode=control"),
        *_ports(hardware, port_fds),
        *_cdrom(hardware),
        *(word for bus in hardware.buses for word in ("-device", adapter_options(bus))),
        *(word for disk in hardware.disks for word in ("-drive", drive_options(disk), "-device", disk_options(disk))),
        *(word for nic in hardware.nics for word in ("-netdev", netdev_options(nic), "-device", nic_options(nic))),
        *(("-incoming", incoming) if incoming else ()),
    ]


def adapter_options(bus: int) -> str:
    return f"pvscsi,id=scsi{bus},addr={_FIRST_ADAPTER_SLOT + bus:#x}"


def drive_options(disk: Disk) -> str:
    """The content of a disk; lab_disks has looked at its descriptor. QEMU's own VMDK reader cannot be migrated.

    A disk whose changes are thrown away is opened for reading alone, by any number of VMs.
    """
    file = _escaped(content_file(disk.chain[0]))
    snapshot = "on" if disk.thrown_away else "off"
    return f"if=none,id={disk.id}-file,format=raw,file={file},snapshot={snapshot},cache=unsafe,discard=unmap"


def disk_options(disk: Disk) -> str:
    where = f"bus=scsi{disk.bus}.0,scsi-id={disk.unit},lun=0"
    return f"scsi-hd,id={disk.id},drive={disk.id}-file,{where},vendor=VMware,product=Virtual disk"


def netdev_options(nic: Nic) -> str:
    """A cable that leads nowhere."""
    return f"hubport,id={nic.id}-cable,hubid={nic.unit}"


def nic_options(nic: Nic) -> str:
    slot = _FIRST_NIC_SLOT + nic.unit - _FIRST_NIC_UNIT
    return f"vmxnet3,id={nic.id},x-disable-pcie=on,netdev={nic.id}-cable,mac={nic.mac},addr={slot:#x}"


def _smbios() -> list[str]:
    """What tells a guest that it is on VMware."""
    return [
        *("-smbios", "type=1,manufacturer=VMware\\, Inc.,product=VMware Virtual Platform".replace("\\,", ",,")),
        *("-smbios", "type=2,manufacturer=Intel Corporation,product=440BX Desktop Reference Platform"),
    ]


def _firmware(hardware: Hardware, variables: Path) -> list[str]:
    if not hardware.efi:
        return []
    if not FIRMWARE_CODE.is_file():
        raise LabError(f"a VM with EFI needs {FIRMWARE_CODE}: install the package ovmf")
    return [
        *("-drive", f"if=pflash,format=raw,readonly=on,file={FIRMWARE_CODE}"),
        *("-drive", f"if=pflash,format=raw,file={_escaped(variables)}"),
    ]


def _ports(hardware: Hardware, port_fds: Sequence[int]) -> list[str]:
    words, fds = [], iter(port_fds)
    for number, port in enumerate(hardware.ports):
        if port is None:
            backend = f"null,id=port{number}"
        elif isinstance(port, FilePort):
            append = "on" if hardware.append_to_files else "off"
            backend = f"file,id=port{number},path={_escaped(port.file)},append={append}"
        else:
            backend = f"socket,id=port{number},fd={next(fds)}"
        words += ["-chardev", backend, "-device", f"isa-serial,index={number},chardev=port{number}"]
    return words


def _cdrom(hardware: Hardware) -> list[str]:
    if hardware.cdrom is None:
        return []
    return [
        *("-drive", f"if=none,id=cdrom,media=cdrom,format=raw,readonly=on,file={_escaped(hardware.cdrom)}"),
        *(("-device", "ahci,id=sata") if hardware.sata else ()),
        *("-device", f"ide-cd,id=cdrom0,drive=cdrom,bootindex=0{',bus=sata.0' if hardware.sata else ''}"),
    ]


def _escaped(path: Path) -> str:
    """In an option list a comma is written twice."""
    return str(path).replace(",", ",,")
