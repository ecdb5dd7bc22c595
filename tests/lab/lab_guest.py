"""A real guest for the lab: a container's VM with the guest image's CD, and its agent behind a concentrator."""

from __future__ import annotations

import io
import json
import os
import secrets
import shutil
import subprocess
import tarfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from lab_estate import EMPTY, IMAGE, Estate, agent_port, cdrom, console, delta_disk, image_disk, nic
from pyVmomi import vim
from vsphere_waiting import until

from portlayer.agent.client import AgentClient
from portlayer.drivers.vsphere.serial.concentrator import Concentrator
from tether.v1 import tether_pb2

_BUILD = Path(__file__).parents[2] / "build"
GUEST_ISO = _BUILD / "photon-image" / "guest.iso"
_ARCHIVE = _BUILD / "images" / "busybox.tar"
_WRITABLE_BYTES = 64 << 20
BOOT_SECONDS = 120.0


def make_files(estate: Estate, scratch: Path) -> None:
    """The guest image's CD, an image disk with busybox, and an empty file system, in the datastore."""
    shutil.copyfile(GUEST_ISO, estate.directory / "vch" / "guest.iso")
    tree, image, empty = scratch / "tree", scratch / "image", scratch / "empty"
    with tarfile.open(_ARCHIVE) as archive:
        (described,) = json.load(archive.extractfile("manifest.json") or io.BytesIO())
        for name in described["Layers"]:
            with tarfile.open(fileobj=archive.extractfile(name)) as layer:
                layer.extractall(tree, filter="tar")
    subprocess.run(["mksquashfs", tree, image, "-comp", "zstd", "-all-root", "-no-progress", "-quiet"], check=True)
    empty.touch()
    os.truncate(empty, _WRITABLE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", empty], check=True)
    estate.make_disk(IMAGE, image.read_bytes())
    estate.make_disk(EMPTY, empty.read_bytes())


class GuestMachine:
    """A VM of the estate whose agent dials the concentrator."""

    def __init__(
        self, estate: Estate, concentrator: Concentrator, name: str, *, token: str | None = None, **extra: str
    ) -> None:
        self._estate = estate
        self._concentrator = concentrator
        self.name = name
        self.token = token or secrets.token_hex(16)
        self.machine: vim.VirtualMachine = estate.create(
            name,
            cdrom(),
            console(name),
            agent_port(f"vch://{self.token}", concentrator.uri),
            nic(),
            **extra,
        )
        self.uuid = str(estate.values(self.machine)["config.instanceUuid"])
        concentrator.admit(self.uuid, self.token)

    def give_disks(self) -> None:
        """Image disk at target 0, a delta of the empty one at target 1: hot, if it is on."""
        adapter = self._estate.device(self.machine, vim.vm.device.ParaVirtualSCSIController)
        disks = [image_disk(), delta_disk(self.name)]
        for one in disks:
            one.device.controllerKey = adapter.key
        self._estate.reconfigure(self.machine, *disks)

    def power_on(self) -> None:
        self._estate.wait(self.machine.PowerOnVM_Task())

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[AgentClient]:
        async with AgentClient(lambda: self._concentrator.connect(self.uuid)) as agent:
            yield agent

    async def went_off(self) -> None:
        """Returns when the inventory says so."""
        await until(lambda: self._estate.power_state(self.machine) == "poweredOff")


async def launch(agent: AgentClient, script: str) -> None:
    """Runs the script as a container on the disks that the VM was given."""
    answer = await agent.start(
        tether_pb2.StartRequest(
            request_id=secrets.token_hex(16),
            entropy=secrets.token_bytes(32),
            wall_clock_unix_ns=time.time_ns(),
            hostname="box",
            image_disk=tether_pb2.Disk(serial="scsi:0", filesystem="squashfs"),
            writable_disk=tether_pb2.Disk(serial="scsi:1", filesystem="ext4"),
            process=tether_pb2.ProcessSpec(args=["/bin/sh", "-c", script], env=["PATH=/bin"]),
        ),
        timeout_s=BOOT_SECONDS,
    )
    assert answer.pid, answer


async def run(agent: AgentClient, script: str) -> tuple[int, str]:
    """Exit code and output of a container that runs the script; the VM goes off when it has ended."""
    await launch(agent, script)
    return await outcome(agent)


async def outcome(agent: AgentClient, on_output: Callable[[], None] | None = None) -> tuple[int, str]:
    """Of a container that was launched; `on_output` hears of each piece."""
    output = b""
    follow = agent.follow("init", 0)
    async for message in follow:
        if message.HasField("exited"):
            follow.acknowledge(message.exited.end_offset, exit_recorded=True)
            return message.exited.exit_code, output.decode()
        output += message.output.data
        follow.acknowledge(message.output.offset + len(message.output.data))
        if on_output is not None:
            on_output()
    raise AssertionError("the output ended without an exit")
