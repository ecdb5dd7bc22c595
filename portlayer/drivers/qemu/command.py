"""QEMU's command line for a machine, as a list. Pure: nothing here starts, opens or asks anything.

Machine version, device order and ids are pinned: a later clone of a frozen machine must be given the very same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from portlayer.drivers.base import IMAGE_DISK_SERIAL, WRITABLE_DISK_SERIAL, MachineSpec
from portlayer.drivers.qemu.vsock import VIRTIO, VSOCK, Address

PROGRAM = "qemu-system-x86_64"
MACHINE_TYPE = "pc-q35-7.2"
CHANNEL_PORT = "vch.agent"

# Names below a machine's directory, which is QEMU's working directory.
PID_FILE = "qemu.pid"
LOG_FILE = "qemu.log"
CONSOLE_LOG = "console.log"
OLD_CONSOLE_LOG = "console.log.1"
QMP_SOCKET = "qmp.sock"
AGENT_SOCKET = "agent.sock"

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


def machine_name(machine_id: str) -> str:
    """The word in the command line by which a process is known to be this machine."""
    return f"guest=vch-{machine_id}"


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
    """Runs in the machine's directory, the console on its stdout. `qmp_fd` is an inherited listening socket."""
    return [
        host.program,
        *("-name", machine_name(spec.id)),
        *base_options(host),
        *("-m", f"{memory_bytes(spec)}B"),
        *("-smp", str(spec.cpus)),
        *("-kernel", str(host.guest_image / "vmlinuz")),
        *("-initrd", str(host.guest_image / "initramfs")),
        *("-append", kernel_command_line(host.accelerator, line)),
        *("-pidfile", PID_FILE),
        *("-chardev", f"socket,id=qmp,fd={qmp_fd},server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
        *("-chardev", "file,id=console,path=/dev/stdout"),
        *("-serial", "chardev:console"),
        *("-object", "rng-builtin,id=rng"),
        *("-device", "virtio-rng-pci,id=rng0,rng=rng"),
        *_channel(line),
        # Gives memory that the guest has freed back to the host, without anyone asking.
        *("-device", "virtio-balloon-pci,id=balloon0,free-page-reporting=on"),
        *_disk("image", image_disk, serial=IMAGE_DISK_SERIAL, read_only=True),
        *_disk("writable", writable_disk, serial=WRITABLE_DISK_SERIAL, read_only=False),
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


def memory_bytes(spec: MachineSpec) -> int:
    """The machine's memory: what was asked for, at least what boots, in whole large pages."""
    wanted = max(spec.memory_bytes, MINIMUM_MEMORY_BYTES)
    return -(-wanted // _MEMORY_GRAIN) * _MEMORY_GRAIN


def _channel(line: Line) -> list[str]:
    if isinstance(line, Address):
        return ["-device", f"vhost-vsock-pci,id=vsock0,guest-cid={line.cid},vhostfd={line.fd}"]
    return [
        *("-device", "virtio-serial-pci,id=serial0"),
        *("-chardev", f"socket,id=agent,fd={line.fd},server=on,wait=off"),
        *("-device", f"virtserialport,id=agent0,bus=serial0.0,nr=1,chardev=agent,name={CHANNEL_PORT}"),
    ]


def _disk(node: str, path: Path, *, serial: str, read_only: bool) -> list[str]:
    """A raw disk. An image disk is shared by many machines and takes no locks; a writable one gives space back."""
    file = {"driver": "file", "node-name": f"{node}-file", "filename": str(path), "read-only": read_only}
    raw = {"driver": "raw", "node-name": node, "file": f"{node}-file", "read-only": read_only}
    if read_only:
        file["locking"] = "off"
    else:
        file["discard"] = raw["discard"] = "unmap"
        raw["detect-zeroes"] = "unmap"
    return [
        *("-blockdev", json.dumps(file)),
        *("-blockdev", json.dumps(raw)),
        *("-device", f"virtio-blk-pci,id={node}0,drive={node},serial={serial},werror=enospc,rerror=report"),
    ]
