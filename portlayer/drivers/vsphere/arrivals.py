"""How files come to their places on a datastore: whole or not at all, and once.

Whatever comes is made in a directory of its own, `INCOMING/OWNER-TOKEN`, and moved to its place when it is whole, so a
name that is there is right. OWNER is a number that a port layer keeps in its state directory: what it left below
`INCOMING` in a crash is removed when it opens, and what others left there when it is a day old. What cannot be removed
at once, since vSphere still writes to it for somebody who is gone, is tried again with each further arrival.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import re
import secrets
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

from portlayer.drivers.uninterrupted import uninterrupted
from portlayer.drivers.vsphere import vmdk
from portlayer.drivers.vsphere.files import Files
from portlayer.drivers.vsphere.leftovers import Leftovers
from portlayer.drivers.vsphere.upload import Folder
from portlayer.drivers.vsphere.vmdk import Disks
from portlayer.errors import PortLayerError

INCOMING: Final = "incoming"
_OWNER = re.compile(r"[0-9a-f]{16}")
_STALE = datetime.timedelta(days=1)
_log = logging.getLogger(__name__)


class Arrivals:
    """Below the directory `root` of a datastore. Methods raise PortLayerError."""

    def __init__(self, root: str, owner: str, files: Files, disks: Disks, folder: Folder) -> None:
        self._incoming = f"{root}/{INCOMING}"
        self._owner = owner
        self._files = files
        self._disks = disks
        self._folder = folder
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._leftovers = Leftovers("the directory", disks.remove_directory)

    async def open(self) -> None:
        """Called once, first."""
        await self._files.make_directory(self._incoming)
        await self._sweep()

    def lock(self, target: str) -> asyncio.Lock:
        """Guards the making and the removal of a file within this process."""
        return self._locks.setdefault(target, asyncio.Lock())

    async def bring(self, target: str, make: Callable[[str], Awaitable[None]]) -> None:
        """Has `make` make the file or disk `target`, by another name. No effect when there is one already."""
        if await self._exists(target):
            return
        async with self._directory() as directory:
            source = f"{directory}/{target.rpartition('/')[2]}"
            await make(source)
            try:
                await uninterrupted(self._move(source, target))
            except PortLayerError:
                # Another port layer was quicker, or an attempt of ours whose answer was lost.
                if not await self._exists(target):
                    raise

    async def _exists(self, target: str) -> bool:
        if target.endswith(vmdk.SUFFIX):
            return await self._disks.exists(target)
        return await self._folder.size(target) is not None

    async def _move(self, source: str, target: str) -> None:
        if target.endswith(vmdk.SUFFIX):
            await self._disks.move(source, target)
        else:
            await self._files.move(source, target)

    @contextlib.asynccontextmanager
    async def _directory(self) -> AsyncIterator[str]:
        """For something on its way. What is left in it goes with it."""
        await self._leftovers.try_again()
        directory = f"{self._incoming}/{self._owner}-{secrets.token_hex(8)}"
        await self._files.make_directory(directory)
        try:
            yield directory
        finally:
            await uninterrupted(self._leftovers.remove(directory))

    async def _sweep(self) -> None:
        now = datetime.datetime.now(datetime.UTC)
        for entry in await self._files.entries(self._incoming):
            stale = entry.modified is not None and now - entry.modified > _STALE
            if stale or entry.name.startswith(f"{self._owner}-"):
                _log.info("removing %s/%s, left half-made", self._incoming, entry.name)
                await self._leftovers.remove(f"{self._incoming}/{entry.name}")


def owner_of(work_dir: Path) -> str:
    """The number of the port layer that works in a directory; made when there is none."""
    work_dir.mkdir(parents=True, exist_ok=True)
    file = work_dir / "owner"
    with contextlib.suppress(FileNotFoundError):
        if _OWNER.fullmatch(known := file.read_text()):
            return known
    owner = secrets.token_hex(8)
    new = file.with_suffix(".new")
    new.write_text(owner)
    new.replace(file)
    return owner
