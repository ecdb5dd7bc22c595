"""The machines of one VCH on this host: implements MachineDriver."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from portlayer.drivers import guest_image as guest_images
from portlayer.drivers.base import Capacity, Cloning, DiskNames, Machine, MachineChange, MachineSpec
from portlayer.drivers.qemu import accelerator as accelerators
from portlayer.drivers.qemu import command, process, vsock
from portlayer.drivers.qemu.datastore import LocalDatastore
from portlayer.drivers.qemu.disks import EmptyDisks
from portlayer.drivers.qemu.failures import os_errors
from portlayer.drivers.qemu.inventory import Inventory
from portlayer.drivers.qemu.machine import QemuMachine
from portlayer.drivers.qemu.templates import QemuCloning
from portlayer.drivers.uninterrupted import uninterrupted
from portlayer.errors import DriverError

_log = logging.getLogger(__name__)
_MEMORY_OF_PROOF = "accelerator.json"


class QemuDriver:
    """Implements MachineDriver below `state_dir`, booting the image in `guest_image`."""

    def __init__(
        self, state_dir: Path, guest_image: Path, *, accelerator: str | None = None, channel: str = vsock.VIRTIO
    ) -> None:
        self._state_dir = state_dir.absolute()
        self._image_directory = guest_image.absolute()
        self._forced = accelerator
        self._wanted_channel = channel
        self._datastore = LocalDatastore(self._state_dir)
        empties = EmptyDisks(self._state_dir / "empties")
        self._inventory = Inventory(self._state_dir / "machines", empties)
        self._cloning = QemuCloning(self._state_dir, empties, self._host, self._template_identity)
        self._machines: dict[str, QemuMachine] = {}
        self._clearing: set[asyncio.Task[None]] = set()
        self._qemu: accelerators.Qemu | None = None
        self._choice: accelerators.Choice | None = None
        self._channel = vsock.Choice(vsock.VIRTIO, "not chosen yet")

    @property
    def name(self) -> str:
        return "qemu"

    @property
    def disk_names(self) -> DiskNames:
        return command.DISK_NAMES

    @property
    def networks(self) -> Mapping[str, str]:
        """None yet."""
        return {}

    @property
    def cloning(self) -> Cloning | None:
        return self._cloning if self._channel.channel == vsock.VIRTIO else None

    async def open(self) -> None:
        image = guest_images.read(self._image_directory, "virtio")
        with os_errors(f"opening {self._state_dir}"):
            for path in await asyncio.to_thread(self._inventory.rubbish):
                await process.end_all_below(path)
            await asyncio.to_thread(self._inventory.open)
            self._qemu = await accelerators.inspect_qemu()
            memory = self._state_dir / _MEMORY_OF_PROOF
            self._choice = await accelerators.choose(self._qemu, image, memory, self._forced)
            self._channel = await asyncio.to_thread(vsock.choose, self._wanted_channel)
            specs = await asyncio.to_thread(self._inventory.load)
            await self._cloning.open()
        self._machines = {spec.id: self._machine(spec) for spec in specs}

    async def close(self) -> None:
        await asyncio.gather(*self._clearing)
        for machine in self._machines.values():
            await machine.release()
        await self._cloning.close()

    async def create(self, spec: MachineSpec, record: bytes) -> Machine:
        known = spec.id in self._machines
        try:
            return await uninterrupted(self._create(spec, record))
        except asyncio.CancelledError:
            if not known:
                await uninterrupted(self._destroy(spec.id))
            raise

    async def list(self) -> list[Machine]:
        return list(self._machines.values())

    async def destroy(self, machine: Machine) -> None:
        await uninterrupted(self._destroy(machine.id))

    def on_change(self, listener: Callable[[MachineChange], None]) -> None:
        """Nothing to tell: nobody else has a hand in these machines."""

    async def capacity(self) -> Capacity:
        memory = psutil.virtual_memory().total
        # Linux refuses a mapping that is larger than both together.
        return Capacity(os.cpu_count() or 1, memory, memory + psutil.swap_memory().total)

    async def dismantle(self) -> Sequence[str]:
        return []  # all there is, is in the state directory

    async def info(self) -> Mapping[str, str]:
        qemu, choice = self._ready()
        image = guest_images.read(self._image_directory)
        stalled = [machine.id[:12] for machine in self._machines.values() if machine.stalled]
        waiting = {"Waiting for disk space": ", ".join(stalled)} if stalled else {}
        return {
            **waiting,
            "Accelerator": choice.accelerator,
            "Accelerator reason": choice.reason,
            "Agent channel": self._channel.channel,
            "Agent channel reason": self._channel.reason,
            "QEMU version": qemu.version,
            "QEMU sandbox": "on" if qemu.sandbox else "off, this QEMU is built without it",
            "Machine type": command.MACHINE_TYPE,
            "Guest image": image.digest,
            "Guest kernel": image.kernel_version,
        }

    async def _create(self, spec: MachineSpec, record: bytes) -> Machine:
        with os_errors(f"creating machine {spec.id}"):
            await asyncio.to_thread(self._inventory.create, spec, record)
        machine = self._machines[spec.id] = self._machine(spec)
        return machine

    async def _destroy(self, machine_id: str) -> None:
        machine = self._machines.get(machine_id)
        if machine is None:
            return
        pidfd = await machine.kill()
        try:
            with os_errors(f"removing machine {machine_id}"):
                trash = await asyncio.to_thread(self._inventory.put_away, machine_id)
        except BaseException:
            if pidfd is not None:
                await process.wait_gone(pidfd)
            raise
        self._machines.pop(machine_id, None)
        # It is gone for everybody; that its process and its files go too is nothing to wait for.
        clearing = asyncio.create_task(self._clear(machine, pidfd, trash))
        self._clearing.add(clearing)
        clearing.add_done_callback(self._clearing.discard)

    async def _clear(self, machine: QemuMachine, pidfd: int | None, trash: Path | None) -> None:
        try:
            if pidfd is not None:
                await process.wait_gone(pidfd)
            await machine.release()
        except DriverError as error:
            _log.error("machine %s: %s", machine.id, error)
        if trash is not None:
            await asyncio.to_thread(self._inventory.clear, trash)

    def _machine(self, spec: MachineSpec) -> QemuMachine:
        return QemuMachine(spec, self._inventory, self._datastore, self._host)

    def _host(self) -> command.Host:
        qemu, choice = self._ready()
        return command.Host(
            qemu.program, choice.accelerator, qemu.sandbox, self._image_directory, self._channel.channel
        )

    def _template_identity(self) -> str:
        """What a template depends on besides QEMU's command line."""
        return f"{self._ready()[0].version} {guest_images.read(self._image_directory).digest}"

    def _ready(self) -> tuple[accelerators.Qemu, accelerators.Choice]:
        if self._qemu is None or self._choice is None:
            raise DriverError("the QEMU driver has not been opened")
        return self._qemu, self._choice
