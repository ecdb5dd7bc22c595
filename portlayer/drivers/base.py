"""What a hypervisor must do for the port layer: the Protocol classes that every driver implements.

Nothing here, and nothing that uses it, may know which hypervisor runs. A driver's inventory is the truth: what a
container is (its record) is stored with its machine, so a new port layer finds everything by `MachineDriver.list`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol


class SquashfsCompression(StrEnum):
    """How image disks are compressed: guest kernels differ in what they read."""

    LZ4 = "lz4"
    ZSTD = "zstd"


class PowerState(StrEnum):
    """Power state as the hypervisor reports it."""

    OFF = "off"
    RUNNING = "running"
    PAUSED = "paused"


class Change(StrEnum):
    """What can happen to a machine without the port layer's doing.

    The first four say what it is now. The others are words about it, for people: nothing follows from them.
    """

    POWERED_ON = "powered on"
    POWERED_OFF = "powered off"
    SUSPENDED = "suspended"
    GONE = "gone"
    # Somebody else than the port layer switched, suspended or reset it.
    SWITCHED = "switched"
    MIGRATED = "migrated"
    # Its host failed, or its guest: the hypervisor has restarted it, or could not.
    FAILED_OVER = "failed over"
    # It stands still until somebody answers a question of the hypervisor's.
    QUESTION = "question"
    ALARM = "alarm"
    RENAMED = "renamed"
    # To another folder of the hypervisor's inventory.
    MOVED = "moved"
    # Between the hypervisor's management and its host.
    CONNECTION = "connection"


@dataclass(frozen=True)
class MachineChange:
    """A change, whoever made it: the port layer knows which ones it ordered. `attributes` are for people."""

    machine_id: str
    kind: Change
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Capacity:
    """What there is for machines. `cpus`: of the largest host, since no machine spans two; `memory_bytes` of all.

    `machine_memory_bytes`: what a host gives one machine at most, 0 when that is not known.
    """

    cpus: int
    memory_bytes: int
    machine_memory_bytes: int


@dataclass(frozen=True)
class CardUsage:
    """Of one network card, as the machine sees it."""

    received_bytes: int = 0
    sent_bytes: int = 0
    received_packets: int = 0
    sent_packets: int = 0
    received_dropped: int = 0
    sent_dropped: int = 0


@dataclass(frozen=True)
class MachineUsage:
    """What the hypervisor counts of a machine. Counters begin anywhere, never go back, and may lag by some seconds.

    `memory_bytes`: of the host's memory, 0 for a machine that has none of it now; `active_memory_bytes`: what it has
    touched of late. `cards` are in the order of the machine's networks.
    """

    cpu_ns: int
    memory_bytes: int
    active_memory_bytes: int
    read_bytes: int
    written_bytes: int
    cards: tuple[CardUsage, ...] = ()


@dataclass(frozen=True)
class DiskNames:
    """How the agent finds a machine's disks: serial numbers, or "scsi:N" for the Nth place at the SCSI controller."""

    image: str
    writable: str


@dataclass(frozen=True)
class MachineSpec:
    """Shape of a machine; fixed when it is created.

    `image_disk` is a name in the datastore; the disk is attached read-only. The writable disk (ext4, empty,
    `writable_disk_bytes` large) is made with the machine. It has one network card for each of `networks`, in that
    order; they are names of the driver's. `name`, `image_name` and `owner` are for people.
    """

    id: str
    name: str
    memory_bytes: int
    cpus: int
    image_disk: str
    writable_disk_bytes: int
    image_name: str = ""
    owner: str = ""
    networks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shape:
    """What a template and its clones have in common, as far as a container can ask for it."""

    memory_bytes: int
    cpus: int


class Guest(Protocol):
    """A VM that is no container's: a template on its way, or a clone that waits for a container to be put into it.

    `open_channel` is as Machine's. Methods raise DriverError.
    """

    @property
    def shape(self) -> Shape: ...

    @property
    def disk_names(self) -> DiskNames:
        """How its agent finds the disks of a container, and practice disks."""

    async def open_channel(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]: ...

    async def wait_off(self) -> None:
        """Returns when it is off, at once if it is."""

    async def attach_practice_disks(self) -> None:
        """Gives it disks to rehearse a start on, under the serial numbers of a container's; they hold nothing."""

    async def detach_practice_disks(self) -> None:
        """Takes them away; the guest has let go of them."""

    async def discard(self) -> None:
        """Removes it and everything of it. No effect when it is gone, or has become a container's."""


class Clone(Guest, Protocol):
    """A guest with a template's state. It becomes a container's by `Machine.power_on`."""

    @property
    def phases_ns(self) -> Mapping[str, int]:
        """How long it took to come about: "machine" and "restore", nanoseconds."""

    async def resume(self) -> None:
        """Lets it run, so that it can rehearse. New clones do not run."""

    async def suspend(self) -> None:
        """Stops it where it is: it uses no processor while it waits."""

    async def private_bytes(self) -> int:
        """Memory of the host that it alone takes."""


class Template(Protocol):
    """A frozen guest, which stays until it is removed."""

    @property
    def id(self) -> str:
        """Digest of everything that a clone must share with it."""

    @property
    def shape(self) -> Shape: ...

    @property
    def created_unix_ns(self) -> int: ...

    @property
    def made_in_ns(self) -> int: ...

    @property
    def last_used_unix_ns(self) -> int:
        """When `note_use` was called last, also before this port layer's life; its making counts."""

    def note_use(self) -> None:
        """A container starts from it."""

    @property
    def disk_bytes(self) -> int:
        """What it takes of the datastore."""

    @property
    def resident_bytes(self) -> int:
        """What it takes of the host's memory, for all its clones together."""

    async def clone(self) -> Clone:
        """A new guest, suspended. On any failure nothing is left of it."""

    async def remove(self) -> None:
        """Removes it; its clones live on. No effect when it is gone."""


class Parent(Guest, Protocol):
    """A guest that was booted to become a template."""

    async def freeze(self, made_in_ns: int) -> Template:
        """Makes it one, durably; in the place of an older one of its shape. Nobody may be connected to its agent.

        Where `Cloning.parents_freeze_themselves`, it runs on until its agent is told to stop.
        """


class Cloning(Protocol):
    """A driver's instant clone."""

    @property
    def rehearsals(self) -> tuple[int, int]:
        """How often a start is tried out in a parent before it is frozen, and in a clone that is to wait."""

    @property
    def parents_freeze_themselves(self) -> bool:
        """Whether a parent's agent is to be told to stop its VM, after `Parent.freeze`: from then on nothing is asked
        of the hypervisor but clones."""

    def shape_for(self, memory_bytes: int, cpus: int) -> Shape | None:
        """The shape whose clones can carry a machine of that size; None when it has to boot."""

    async def templates(self) -> list[Template]:
        """Those that can be cloned now. What is out of date has been removed by `MachineDriver.open`."""

    async def boot_parent(self, shape: Shape) -> Parent:
        """Boots a guest; returns once the hypervisor runs it. On any failure nothing is left of it."""


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
    def location(self) -> str:
        """Where an administrator finds it: a directory, the VM's name in vCenter."""

    @property
    def console_log(self) -> str | None:
        """Where the console is kept, for whoever debugs."""

    async def read_record(self) -> bytes:
        """The record last written."""

    async def write_record(self, record: bytes) -> None:
        """Replaces the record; durable and atomic when this returns."""

    async def power_state(self) -> PowerState: ...

    async def power_on(self, clone: Clone | None = None) -> None:
        """Boots it, or puts it into `clone`; returns once the hypervisor runs it. The agent need not be up.

        No effect when it is on. A clone that was passed is used up, whatever comes of it.
        """

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

    async def usage(self) -> MachineUsage | None:
        """What the hypervisor counts of it; None when it counts nothing, or has not begun to."""


class MachineDriver(Protocol):
    """The machines of one VCH on one hypervisor."""

    @property
    def name(self) -> str:
        """The hypervisor: "qemu" or "vsphere"."""

    @property
    def disk_names(self) -> DiskNames:
        """The same for all its machines."""

    @property
    def networks(self) -> Mapping[str, str]:
        """Networks that a machine's cards can be on: their names, and what they are on the hypervisor, for people.

        "bridge" is the one that machines are on unless they are to be on others; there need not be one.
        """

    @property
    def cloning(self) -> Cloning | None:
        """Instant clone, where the driver has it."""

    def on_change(self, listener: Callable[[MachineChange], None]) -> None:
        """Tells `listener`, in the event loop, what happens to machines, from now on.

        A hypervisor that only does what it is told by this port layer has nothing to tell.
        """

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

    async def capacity(self) -> Capacity: ...

    async def info(self) -> Mapping[str, str]:
        """Key and value for people: accelerator and why it was chosen, versions, guest image."""

    async def dismantle(self) -> Sequence[str]:
        """Removes what the VCH has made for itself beyond machines and images, as far as it is empty.

        Gives back what stays, in words. There are no machines and no clones any more; only `close` may follow.
        """


class Datastore(Protocol):
    """Where image disks live."""

    @property
    def squashfs_compression(self) -> SquashfsCompression:
        """Of its image disks."""

    async def put_image_disk(self, name: str, source: Path) -> None:
        """Moves the local file `source` in as image disk `name`; atomic. No effect when the name exists."""

    async def has_image_disk(self, name: str) -> bool: ...

    async def remove_image_disk(self, name: str) -> None:
        """No effect when it does not exist."""

    async def image_disk_bytes(self, name: str) -> int: ...

    async def free_bytes(self) -> int: ...
