"""QEMU's command line for a machine, as a list. Pure: nothing here starts, opens or asks anything.

Machine version, device order and ids are pinned: a clone of a frozen machine must be given the very same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from portlayer.drivers.base import DiskNames, MachineSpec, Shape
from portlayer.drivers.qemu.vsock import VIRTIO, VSOCK, Address

PROGRAM = "qemu-system-x86_64"
MACHINE_TYPE = "pc-q35-7.2"
CHANNEL_PORT = "vch.agent"
# The disks' serial numbers.
DISK_NAMES = DiskNames("image", "writable")

# How the names of all guests begin, in QEMU's command line.
GUEST = "guest=vch-"

# Names below a QEMU's working directory.
PID_FILE = "qemu.pid"
LOG_FILE = "qemu.log"
CONSOLE_LOG = "console.log"
QMP_SOCKET = "qmp.sock"
AGENT_SOCKET = "agent.sock"

# What disks of a guest without any are as large as: a guest learns the size of a disk when it boots, and what takes the
# place of such a disk later is smaller.
_NO_DISK_BYTES = 1 << 44

# Below this the guest's own kernel and agent find no room; the agent holds the container to what was asked for.
MINIMUM_MEMORY_BYTES = 128 << 20

_MEMORY_GRAIN = 2 << 20
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_KERNEL_COMMAND_LINE = "console=ttyS0 quiet panic=-1 reboot=t random.trust_cpu=on cryptomgr.notests"


@dataclass(frozen=True)
class Host:
    """What all machines of this host have in common."""

    program: str
    accelerator: str
    sandbox: bool
    guest_image: Path
    channel: str = VIRTIO


@dataclass(frozen=True)
class SerialLine:
    """The agent's channel as a virtio-serial port; `fd` is an inherited listening socket."""

    fd: int


Line = SerialLine | Address


@dataclass(frozen=True)
class DiskFile:
    """A raw disk in a file. An image disk is shared by many machines and takes no locks; a writable one gives space
    back."""

    path: Path
    read_only: bool


@dataclass(frozen=True)
class MemoryFile:
    """The file that holds a template's memory, as an inherited descriptor; `shared` while the template is made."""

    fd: int
    shared: bool


IMAGE_NODE, WRITABLE_NODE = "image", "writable"


def machine_name(machine_id: str) -> str:
    """The word in the command line by which people find a machine that was booted."""
    return f"{GUEST}{machine_id}"


def cpu_options(accelerator: str) -> list[str]:
    """As much as the accelerator has, less what costs time under emulation.

    5-level page tables make every walk longer. "Fast" string moves (ERMS, FSRM) are emulated byte by byte: a guest that
    is told of them copies memory at a fifth of its speed.
    """
    return ["-accel", accelerator, "-cpu", "max,-la57,-erms,-fsrm" if accelerator == "tcg" else "max"]


def kernel_command_line(accelerator: str, line: Line) -> str:
    """What the guest's kernel is told.

    Huge pages gain nothing under emulation, and a kernel that uses them keeps 66 MB free for that, much of it in lists
    of its CPUs from which nothing goes back to the host.
    """
    channel = VIRTIO if isinstance(line, SerialLine) else VSOCK
    huge_pages = " transparent_hugepage=never" if accelerator == "tcg" else ""
    return f"{_KERNEL_COMMAND_LINE}{huge_pages} vch.channel={channel}"


def sandbox_options() -> list[str]:
    """QEMU gives up the system calls that a running machine has no use for."""
    return ["-sandbox", _SANDBOX]


def base_options(host: Host) -> list[str]:
    """What the proof boot shares with real machines."""
    return [
        *("-machine", MACHINE_TYPE),
        *cpu_options(host.accelerator),
        *(sandbox_options() if host.sandbox else ()),
        *("-nodefaults", "-no-user-config", "-no-reboot"),
        *("-display", "none"),
    ]


def machine_command(
    spec: MachineSpec, host: Host, *, image_disk: Path, writable_disk: Path, qmp_fd: int, line: Line
) -> list[str]:
    """A machine that boots. Runs in its process's directory, the console on its stdout.

    `qmp_fd` is an inherited listening socket.
    """
    return [
        host.program,
        *("-name", machine_name(spec.id)),
        *base_options(host),
        *("-m", f"{memory_bytes(spec.memory_bytes)}B"),
        *("-smp", str(spec.cpus)),
        *kernel_options(host, line),
        *_devices(qmp_fd, line),
        # Gives memory that the guest has freed back to the host, without anyone asking.
        *("-device", "virtio-balloon-pci,id=balloon0,free-page-reporting=on"),
        *_disk(IMAGE_NODE, file_options(DiskFile(image_disk, read_only=True)), DISK_NAMES.image),
        *_disk(WRITABLE_NODE, file_options(DiskFile(writable_disk, read_only=False)), DISK_NAMES.writable),
    ]


def template_command(
    name: str, shape: Shape, host: Host, *, memory: MemoryFile, qmp_fd: int, line: SerialLine
) -> list[str]:
    """A guest without disks that becomes a template (`memory.shared`), or the clone of one, which waits for its state.

    No balloon: what a guest gives back through one is punched out of the memory's file, for all clones (QEMU 7.2,
    ram_block_discard_range). A clone needs no kernel, and QEMU would keep a copy of it.
    """
    begin = kernel_options(host, line) if memory.shared else ["-incoming", "defer"]
    share = "on" if memory.shared else "off"
    size = f"{shape.memory_bytes}B"
    return [
        host.program,
        *("-name", machine_name(name)),
        *base_options(host),
        *("-object", f"memory-backend-file,id=memory,size={size},mem-path=/proc/self/fd/{memory.fd},share={share}"),
        *("-machine", "memory-backend=memory"),
        *("-m", size),
        *("-smp", str(shape.cpus)),
        *begin,
        *_devices(qmp_fd, line),
        *_disk(IMAGE_NODE, no_disk_options(IMAGE_NODE), DISK_NAMES.image),
        *_disk(WRITABLE_NODE, no_disk_options(WRITABLE_NODE), DISK_NAMES.writable),
    ]


def kernel_options(host: Host, line: Line) -> list[str]:
    return [
        *("-kernel", str(host.guest_image / "vmlinuz")),
        *("-initrd", str(host.guest_image / "initramfs")),
        *("-append", kernel_command_line(host.accelerator, line)),
    ]


def _devices(qmp_fd: int, line: Line) -> list[str]:
    """What every machine has besides disks."""
    return [
        *("-pidfile", PID_FILE),
        *("-chardev", f"socket,id=qmp,fd={qmp_fd},server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
        *("-chardev", "file,id=console,path=/dev/stdout"),
        *("-serial", "chardev:console"),
        *("-object", "rng-builtin,id=rng"),
        *("-device", "virtio-rng-pci,id=rng0,rng=rng"),
        *_channel(line),
    ]


def proof_command(host: Host, memory: str) -> list[str]:
    """Boots kernel and initramfs with the kernel's messages on stdout; they must show the start of /init."""
    return [
        host.program,
        *base_options(host),
        *("-m", memory),
        *("-kernel", str(host.guest_image / "vmlinuz")),
        *("-initrd", str(host.guest_image / "initramfs")),
        *("-append", "console=ttyS0 panic=-1 reboot=t"),
        *("-serial", "stdio"),
    ]


def guest_cid(argv: Sequence[str]) -> int | None:
    """The vsock address in a machine's command line; None when its agent is reached over virtio-serial."""
    devices = (word.split(",") for word in argv if word.startswith("vhost-vsock-pci,"))
    numbers = (option.removeprefix("guest-cid=") for options in devices for option in options if "guest-cid=" in option)
    return next(map(int, numbers), None)


def memory_bytes(wanted_bytes: int) -> int:
    """A machine's memory: what was asked for, at least what boots, in whole large pages."""
    wanted = max(wanted_bytes, MINIMUM_MEMORY_BYTES)
    return -(-wanted // _MEMORY_GRAIN) * _MEMORY_GRAIN


def _channel(line: Line) -> list[str]:
    if isinstance(line, Address):
        return ["-device", f"vhost-vsock-pci,id=vsock0,guest-cid={line.cid},vhostfd={line.fd}"]
    return [
        *("-device", "virtio-serial-pci,id=serial0"),
        *("-chardev", f"socket,id=agent,fd={line.fd},server=on,wait=off"),
        *("-device", f"virtserialport,id=agent0,bus=serial0.0,nr=1,chardev=agent,name={CHANNEL_PORT}"),
    ]


def file_options(file: DiskFile, node: str | None = None) -> dict[str, object]:
    """The block node for a file, for -blockdev and blockdev-add alike."""
    options: dict[str, object] = {"driver": "file", "filename": str(file.path), "read-only": file.read_only}
    options |= {"locking": "off"} if file.read_only else {"discard": "unmap"}
    return options | {"node-name": node} if node else options


def no_disk_options(disk: str) -> dict[str, object]:
    """The block node in the place of a disk that is not there."""
    return {
        "driver": "null-co",
        "node-name": no_disk_node(disk),
        "size": _NO_DISK_BYTES,
        "read-zeroes": True,
        "read-only": disk == IMAGE_NODE,
    }


def no_disk_node(disk: str) -> str:
    return f"no-{disk}"


def raw_options(disk: str, below: str) -> dict[str, object]:
    """The node that a disk's device is bound to; another may be put below it."""
    options: dict[str, object] = {"driver": "raw", "node-name": disk, "file": below, "read-only": disk == IMAGE_NODE}
    return options if disk == IMAGE_NODE else options | {"discard": "unmap", "detect-zeroes": "unmap"}


def _disk(disk: str, below: dict[str, object], serial: str) -> list[str]:
    below = {"node-name": f"{disk}-file"} | below
    return [
        *("-blockdev", json.dumps(below)),
        *("-blockdev", json.dumps(raw_options(disk, str(below["node-name"])))),
        *("-device", f"virtio-blk-pci,id={disk}0,drive={disk},serial={serial},werror=enospc,rerror=report"),
    ]
