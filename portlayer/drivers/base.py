"""What a hypervisor must do for the port layer: the Protocol classes that every driver implements.

Nothing here, and nothing that uses it, may know which hypervisor runs. A driver's inventory is the truth: what a
container is (its record) is stored with its machine, so a new port layer finds everything by `MachineDriver.list`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

# Serial numbers by which the agent finds its disks.
IMAGE_DISK_SERIAL = "image"
WRITABLE_DISK_SERIAL = "writable"


class PowerState(StrEnum):
    """Power state as the hypervisor reports it."""

    OFF = "off"
    RUNNING = "running"
    PAUSED = "paused"


@dataclass(frozen=True)
class MachineSpec:
    """Shape of a machine; fixed when it is created.

    `image_disk` is a name in the datastore; the disk is attached read-only under IMAGE_DISK_SERIAL. The writable disk
    (ext4, empty, `writable_disk_bytes` large) is made with the machine and attached under WRITABLE_DISK_SERIAL.
    """

    id: str
    name: str
    memory_bytes: int
    cpus: int
    image_disk: str
    writable_disk_bytes: int


class Machine(Protocol):
    """A container's virtual machine. Methods raise DriverError; all may be repeated."""

    @property
    def id(self) -> str:
        """The container's id, 64 hexadecimal digits."""

    @property
    def spec(self) -> MachineSpec:
        """The shape it was created with."""

    @property
    def directory(self) -> Path:
        """Host-local directory of this machine, for the port layer's files (log); removed with the machine."""

    @property
    def console_log(self) -> Path | None:
        """Where the console is kept, for whoever debugs."""

    async def read_record(self) -> bytes:
        """The record last written."""

    async def write_record(self, record: bytes) -> None:
        """Replaces the record; durable and atomic when this returns."""

    async def power_state(self) -> PowerState: ...

    async def power_on(self) -> None:
        """Boots it; returns once the hypervisor runs it (the agent need not be up). No effect when it is on."""

    async def power_off(self) -> None:
        """Cuts the power and waits until it is off. No effect when it is off."""

    async def wait_off(self) -> None:
        """Returns when the machine is off, at once if it is. Event-driven, never polling."""

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...

    async def open_channel(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A byte stream to the agent; one at a time. Opens as soon as the machine is on, before the agent listens."""

    async def writable_disk_usage(self) -> int:
        """Bytes of the host's storage that the writable disk takes."""


class MachineDriver(Protocol):
    """The machines of one VCH on one hypervisor."""

    @property
    def name(self) -> str:
        """The hypervisor: "qemu" or "vsphere"."""

    async def open(self) -> None:
        """Makes the driver ready and removes what a crash left half-made. Called once, first."""

    async def close(self) -> None:
        """Lets go of connections. Machines go on."""

    async def create(self, spec: MachineSpec, record: bytes) -> Machine:
        """Makes a machine, powered off. On any failure nothing is left of it."""

    async def list(self) -> list[Machine]:
        """All machines of this VCH, running or not."""

    async def destroy(self, machine: Machine) -> None:
        """Powers it off and removes everything of it. No effect when it is gone."""

    async def info(self) -> Mapping[str, str]:
        """Key and value for people: accelerator and why it was chosen, versions, guest image."""


class Datastore(Protocol):
    """Where image disks live."""

    async def put_image_disk(self, name: str, source: Path) -> None:
        """Moves the local file `source` in as image disk `name`; atomic. No effect when the name exists."""

    async def has_image_disk(self, name: str) -> bool: ...

    async def remove_image_disk(self, name: str) -> None:
        """No effect when it does not exist."""

    async def image_disk_bytes(self, name: str) -> int: ...

    async def free_bytes(self) -> int: ...
