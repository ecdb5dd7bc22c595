"""From what a container may use to how large its VM is.

A VM needs memory of its own beside what the container gets: the kernel, the agent, page tables. A container with a
memory limit gets a VM larger by that reserve, and the exact limit from the kernel within. Without a limit the VM's size
is the limit.
"""

from __future__ import annotations

from dataclasses import dataclass

from portlayer.drivers.base import Capacity
from portlayer.errors import InvalidArgumentError
from portlayer.v1 import types_pb2

MIB = 1 << 20
GUEST_RESERVE_BYTES = 192 * MIB
# Docker's own lower limit.
MIN_MEMORY_BYTES = 6 * MIB
_GIB = 1 << 30
_MAX_CPUS = 255
_MIN_DISK_BYTES = 64 * MIB
_MAX_DISK_BYTES = 16 << 40


@dataclass(frozen=True)
class Size:
    """VM memory and disk in bytes; limits within the VM, 0 where the VM's size is the limit."""

    memory_bytes: int
    cpus: int
    disk_bytes: int
    memory_limit_bytes: int
    cpu_limit_ns_per_s: int


def size_of(resources: types_pb2.Resources, *, memory_bytes: int, cpus: int, disk_bytes: int) -> Size:
    """The size for a container; the arguments are the VCH's defaults. Raises InvalidArgumentError."""
    limit = resources.memory_bytes
    if limit and limit < MIN_MEMORY_BYTES:
        raise InvalidArgumentError("Minimum memory limit allowed is 6MB")
    nano = resources.nano_cpus
    wanted_cpus = -(-nano // 1_000_000_000) or cpus
    if wanted_cpus > _MAX_CPUS:
        raise InvalidArgumentError(f"{wanted_cpus} CPUs are more than the {_MAX_CPUS} that a VM can have")
    disk = resources.disk_bytes or disk_bytes
    if not _MIN_DISK_BYTES <= disk <= _MAX_DISK_BYTES:
        raise InvalidArgumentError("the writable disk must have between 64 MiB and 16 TiB")
    return Size(
        memory_bytes=_whole_mib(limit + GUEST_RESERVE_BYTES) if limit else memory_bytes,
        cpus=wanted_cpus,
        disk_bytes=-(-disk // MIB) * MIB,
        memory_limit_bytes=limit,
        cpu_limit_ns_per_s=nano if nano % 1_000_000_000 else 0,
    )


def check_fits(resources: types_pb2.Resources, capacity: Capacity) -> None:
    """Refuses more CPUs or memory than any of the hypervisor's hosts has. Raises InvalidArgumentError."""
    cpus, memory_bytes = capacity.cpus, capacity.machine_memory_bytes
    if resources.nano_cpus > cpus * 1_000_000_000:
        raise InvalidArgumentError(f"range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available")
    limit = resources.memory_bytes
    if limit and 0 < memory_bytes < limit + GUEST_RESERVE_BYTES:
        raise InvalidArgumentError(
            f"a memory limit of {limit / _GIB:.2f} GiB takes a VM that is {GUEST_RESERVE_BYTES // MIB} MiB larger, and"
            f" no host has more than {memory_bytes / _GIB:.2f} GiB"
        )


def _whole_mib(size: int) -> int:
    return -(-size // (2 * MIB)) * 2 * MIB
