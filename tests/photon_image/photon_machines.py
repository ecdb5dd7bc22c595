"""A machine shaped like a container VM on vSphere, as far as QEMU has the devices: no virtio in it at all."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qemu.qmp import QMPClient, QMPError

from portlayer.agent import AgentClient
from portlayer.agent.follow import Follow
from portlayer.drivers.qemu import files
from portlayer.drivers.qemu.command import cpu_options
from tether.v1 import tether_pb2 as pb

REPOSITORY = Path(__file__).parents[2]
# A boot under emulation on a machine that is busy with other things.
PATIENCE_S = 240.0
EMPTY_DISK_BYTES = 64 << 20
CAPABILITIES = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID", "SYS_CHROOT"]


@dataclass(frozen=True)
class Disks:
    """Raw files: an image with busybox (squashfs with zstd), and an empty ext4."""

    image: Path
    writable: Path


def make_disks(directory: Path) -> Disks:
    """Makes both; the writable one is for one machine."""
    archive = REPOSITORY / "build/images/busybox.tar"
    subprocess.run([sys.executable, REPOSITORY / "scripts/busybox_image.py", "--output", archive], check=True)
    tree, disks = directory / "tree", Disks(directory / "image.squashfs", directory / "writable.ext4")
    with tarfile.open(archive) as outer:
        (image,) = json.load(outer.extractfile("manifest.json") or io.BytesIO())
        for name in image["Layers"]:
            with tarfile.open(fileobj=outer.extractfile(name)) as layer:
                layer.extractall(tree, filter="tar")
    squash = ["mksquashfs", tree, disks.image, "-comp", "zstd", "-all-root", "-no-progress", "-quiet"]
    subprocess.run(squash, check=True, stdout=subprocess.DEVNULL)
    os.truncate(disks.image, -(-disks.image.stat().st_size // 4096) * 4096)
    disks.writable.touch()
    os.truncate(disks.writable, EMPTY_DISK_BYTES)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", disks.writable], check=True)
    return disks


class VmwareMachine:
    """One that runs; `agent` speaks over its second serial port."""

    def __init__(self, directory: Path, process: asyncio.subprocess.Process) -> None:
        self.directory = directory
        self.process = process
        self.qmp = QMPClient("machine")
        self.agent = AgentClient(self._open_channel)
        self._channel: asyncio.StreamWriter | None = None

    async def _open_channel(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, self._channel = await asyncio.open_unix_connection(self.directory / "agent.sock")
        return reader, self._channel

    def break_line(self) -> None:
        """Cuts the agent's line; the client opens it again."""
        assert self._channel is not None
        self._channel.transport.abort()

    async def attach(self, target: int, file: Path, *, read_only: bool) -> None:
        """Puts a disk in while the machine runs."""
        node = f"hot{target}"
        disk = {"driver": "file", "filename": str(file), "locking": "off" if read_only else "auto"}
        block = {"driver": "raw", "node-name": node, "read-only": read_only, "file": disk | {"read-only": read_only}}
        await self.qmp.execute("blockdev-add", block)
        await self.qmp.execute("device_add", {"driver": "scsi-hd", "bus": "scsi0.0", "scsi-id": target, "drive": node})

    async def listening(self) -> None:
        """Returns when the console shows that the agent listens."""
        while "tether: listening" not in self.console():
            assert self.process.returncode is None, self.console()
            await asyncio.sleep(0.1)

    def console(self) -> str:
        return (self.directory / "console.log").read_text(errors="replace")


@contextlib.asynccontextmanager
async def vmware_machine(
    directory: Path, boot: Sequence[str], disks: Disks | None, *, machine: str = "pc", silent: bool = False
) -> AsyncIterator[VmwareMachine]:
    """Boots it, `silent` until the agent listens; the process has ended when this ends."""
    directory.mkdir(exist_ok=True)
    qmp = files.listen(directory / "qmp.sock")  # QEMU's own cannot be told apart from one where it listens
    arguments = [
        *("-machine", machine, *cpu_options("tcg"), "-m", "256M", "-nodefaults", "-no-user-config", "-no-reboot"),
        *("-display", "none", "-chardev", f"socket,id=qmp,fd={qmp.fileno()},server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
        *("-chardev", "file,id=console,path=console.log", "-device", "isa-serial,chardev=console"),
        *("-chardev", "socket,id=agent,path=agent.sock,server=on,wait=off", "-device", "isa-serial,chardev=agent"),
        *("-device", "pvscsi,id=scsi0", "-device", "vmxnet3"),
        *boot,
    ]
    if disks is not None:
        for target, (file, read_only) in enumerate(((disks.image, "on"), (disks.writable, "off"))):
            arguments += ["-drive", f"if=none,id=d{target},format=raw,file={file},readonly={read_only}"]
            arguments += ["-device", f"scsi-hd,bus=scsi0.0,scsi-id={target},drive=d{target}"]
    with qmp, (directory / "qemu.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *("qemu-system-x86_64", *arguments),
            cwd=directory,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(qmp.fileno(),),
        )
    vm = VmwareMachine(directory, process)
    try:
        async with asyncio.timeout(PATIENCE_S):
            try:
                await vm.qmp.connect(files.connect(directory / "qmp.sock"))
            except (OSError, QMPError) as error:
                raise AssertionError((directory / "qemu.log").read_text()) from error
            if silent:
                await vm.listening()
            async with vm.agent:
                yield vm
    finally:
        with contextlib.suppress(OSError, EOFError):  # the machine has powered itself off
            await vm.qmp.disconnect()
        if process.returncode is None:
            process.kill()
        await process.wait()


def cd_options(iso: Path) -> list[str]:
    """A CD in an AHCI drive."""
    drive = f"if=none,id=cd,media=cdrom,readonly=on,format=raw,file={iso}"
    return ["-device", "ich9-ahci,id=ahci", "-drive", drive, "-device", "ide-cd,bus=ahci.0,drive=cd,bootindex=0"]


def start_request(*args: str, request_id: str = "run-1", **fields: object) -> pb.StartRequest:
    return pb.StartRequest(
        request_id=request_id,
        entropy=os.urandom(32),
        hostname="box",
        image_disk=pb.Disk(serial="scsi:0", filesystem="squashfs"),
        writable_disk=pb.Disk(serial="scsi:1", filesystem="ext4"),
        process=pb.ProcessSpec(args=args, capabilities=CAPABILITIES, **fields),  # type: ignore[arg-type]
    )


async def take(follow: Follow) -> tuple[bytes, pb.Exited]:
    """All of a process's output, and its exit."""
    output = bytearray()
    async for message in follow:
        if message.HasField("exited"):
            follow.acknowledge(follow.offset, exit_recorded=True)
            return bytes(output), message.exited
        output += message.output.data
        follow.acknowledge(message.output.offset + len(message.output.data))
    raise AssertionError("the output ended without an exit")
