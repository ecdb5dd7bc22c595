"""Settings of a port layer, and sizes as people write them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from portlayer.drivers.vsphere.settings import VsphereSettings

MIB = 1 << 20
DEFAULT_MEMORY_BYTES = 1024 * MIB
DEFAULT_CPUS = 1
DEFAULT_DISK_BYTES = 10 << 30
DEFAULT_CHANNEL = "virtio"
DEFAULT_POOL_SIZE = 12
# Each is a VM that runs in vCenter, for its administrators to see.
DEFAULT_VSPHERE_POOL_SIZE = 2
MAX_POOL_SIZE = 64
DEFAULT_POOL_MEMORY_BYTES = 1024 * MIB
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True)
class Settings:
    """Everything a port layer is told. Sizes in bytes; `accelerator` None: found out by a proof boot.

    With `clone`, containers start as clones of a template where they can. At most `pool_size` clones wait for
    containers, and together they hold at most `pool_memory_bytes` of memory of their own. `vsphere`: where machines are
    on vSphere; without it they are on this host's QEMU.
    """

    state_dir: Path
    grpc: str
    guest_image: Path
    name: str = ""
    default_memory_bytes: int = DEFAULT_MEMORY_BYTES
    default_cpus: int = DEFAULT_CPUS
    default_disk_bytes: int = DEFAULT_DISK_BYTES
    accelerator: str | None = None
    channel: str = DEFAULT_CHANNEL
    clone: bool = True
    pool_size: int = DEFAULT_POOL_SIZE
    pool_memory_bytes: int = DEFAULT_POOL_MEMORY_BYTES
    vsphere: VsphereSettings | None = None


def pool_size(wanted: int | None, vsphere: VsphereSettings | None) -> int:
    """How many clones may wait: as many as are asked for, or as suit the hypervisor."""
    if wanted is not None:
        return wanted
    return DEFAULT_POOL_SIZE if vsphere is None else DEFAULT_VSPHERE_POOL_SIZE


def parse_size(text: str) -> int:
    """Bytes of "512m", "1g", "1.5GiB", "1073741824". Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size: write it as 512m, 1g or in bytes")
    return int(float(match[1]) * _UNITS[match[2].lower()])
