"""Waiting for what has no event of its own, and looking at what changes meanwhile."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from portlayer.drivers.vsphere.driver import VsphereDriver

# Seconds; only a test that fails takes as long.
PATIENCE_S = 60.0


async def until(what: Callable[[], object]) -> None:
    """Returns once it is so. Raises TimeoutError."""
    async with asyncio.timeout(PATIENCE_S):
        while not what():
            await asyncio.sleep(0.01)


async def settled(driver: VsphereDriver) -> None:
    """Returns when all is done that the driver does though nobody waits for it."""
    await until(lambda: not driver._background._tasks)


def everything_below(directory: Path) -> Iterator[Path]:
    """Files and directories. The simulator may remove some meanwhile, which Path.rglob does not stand."""
    for parent, directories, files in os.walk(directory):
        for name in (*directories, *files):
            yield Path(parent, name)
