"""Machines for the driver's tests, and what is left of them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from portlayer.drivers.base import MachineSpec

# Of a machine that is busy with other things: for what takes a moment, and for a boot under emulation.
PATIENCE_S, BOOT_S = 60.0, 240.0


def make_spec(number: int = 1, **changes: object) -> MachineSpec:
    values: dict[str, object] = {
        "id": f"{number:064x}",
        "name": f"machine-{number}",
        "memory_bytes": 256 << 20,
        "cpus": 1,
        "image_disk": "image.squashfs",
        "writable_disk_bytes": 64 << 20,
    }
    return MachineSpec(**(values | changes))  # type: ignore[arg-type]


def own_processes(state_dir: Path) -> list[str]:
    """Command lines of living processes that work below `state_dir`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(state_dir):
                found.append((process / "cmdline").read_text())
        except OSError:
            continue
    return found


def descriptors() -> set[tuple[str, str]]:
    """What this process has open, by number; others may be closed meanwhile, as the garbage collector does."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add((name, os.readlink(f"/proc/self/fd/{name}")))
        except OSError:
            continue  # the directory itself
    return found


async def all_ended(state_dir: Path) -> None:
    """Returns when nothing works below `state_dir` any more: a console's keeper ends just after its QEMU."""
    async with asyncio.timeout(PATIENCE_S):
        while own_processes(state_dir):
            await asyncio.sleep(0.01)
