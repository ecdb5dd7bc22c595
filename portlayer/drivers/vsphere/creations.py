"""Creations of containers' VMs, noted on this machine while they are under way: so what one left can be told.

vSphere takes back what a creation made that fails, as long as it can: where its host is lost in the middle, or the
datastore, the writable disk stays, and the directory that was to be the VM's. Nothing else tells whose they are. A disk
of no VM may also be that of a VM which an administrator has unregistered for a while, or moved to where the account may
not see it; so what has no note is nobody's to remove.

A note is there from before the creation until the VM is there, or nothing of it is. It outlives the port layer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from pyVmomi import vim

from portlayer.drivers.vsphere import operations, vmdk
from portlayer.drivers.vsphere.background import Background
from portlayer.drivers.vsphere.faults import TRANSPORT_ERRORS, caused_by
from portlayer.drivers.vsphere.files import Files, Place
from portlayer.drivers.vsphere.leftovers import Leftovers
from portlayer.drivers.vsphere.session import Session
from portlayer.errors import PortLayerError

_VMX = ".vmx"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Creation:
    """`vc_uuid` of the VM. `disk` and `directory`, relative to the datastore of that name, are no other VM's ever."""

    vc_uuid: str
    datastore: str
    disk: str
    directory: str


class Creations:
    """`folder` is where VMs are made, `place` the datastore that they are on, `directory` has the notes."""

    def __init__(self, session: Session, folder: Any, place: Place, directory: Path, background: Background) -> None:
        self._session = session
        self._folder = folder
        self._place = place
        self._files = Files(session, place)
        self._directory = directory
        self._background = background
        self._under_way: set[str] = set()
        # Of containers: what is removed is not made again meanwhile.
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._is_trying_again = False
        self._leftovers = Leftovers("what the creation left of container", self._remove)

    async def settle(self) -> None:
        """Waits for the end of what an earlier port layer has begun and did not see the end of."""
        if await asyncio.to_thread(self._noted):
            await operations.settled(self._session, self._folder)

    async def sweep(self, known: Collection[str]) -> None:
        """Removes what an earlier port layer's creations left. `known`: containers that were made, by their ids."""
        for machine_id in await asyncio.to_thread(self._noted):
            if machine_id in known:
                await self._forget(machine_id)
            else:
                await self._leftovers.remove(machine_id)

    async def begin(self, machine_id: str, creation: Creation) -> None:
        """Called before a VM is made."""
        if machine_id in self._leftovers:
            await self._leftovers.remove(machine_id)
        async with self._lock(machine_id):
            self._under_way.add(machine_id)
        if self._leftovers and not self._is_trying_again:
            self._is_trying_again = True
            self._background.later(self._try_again(), "removing what creations left")
        try:
            await asyncio.to_thread(self._note(machine_id).write_bytes, msgspec.json.encode(creation))
        except OSError as error:
            _log.warning("what the creation of container %s may leave will stay: %s", machine_id[:12], error)

    async def succeeded(self, machine_id: str) -> None:
        """The VM is there."""
        await self._forget(machine_id)  # first: who removes what has a note, and is not under way, must not find it
        self._under_way.discard(machine_id)

    async def failed(self, machine_id: str, error: PortLayerError) -> None:
        """Removes what there is of it, now or later."""
        self._under_way.discard(machine_id)
        if caused_by(error, *TRANSPORT_ERRORS):
            self._leftovers.add(machine_id)  # nobody is there who could be asked
        else:
            await self._leftovers.remove(machine_id)

    async def _try_again(self) -> None:
        try:
            await self._leftovers.try_again()
        finally:
            self._is_trying_again = False

    def _lock(self, machine_id: str) -> asyncio.Lock:
        return self._locks.setdefault(machine_id, asyncio.Lock())

    async def _remove(self, machine_id: str) -> None:
        async with self._lock(machine_id):
            if machine_id in self._under_way:
                return
            creation = await asyncio.to_thread(self._read, machine_id)
            if creation is None:
                await self._forget(machine_id)
                return
            if creation.datastore != self._place.name:  # which the VCH had before, and may have again
                return
            await operations.settled(self._session, self._folder)
            find, where = self._session.content.searchIndex.FindByUuid, self._place.datacenter
            what = "looking whether a VM was made"
            if await self._session.call(find, where, creation.vc_uuid, True, True, what=what) is None:
                await self._remove_disk(creation.disk)
                await self._remove_directory(creation.directory)
            await self._forget(machine_id)

    async def _remove_disk(self, path: str) -> None:
        directory, _, name = path.rpartition("/")
        pattern = f"{name.removesuffix(vmdk.SUFFIX)}*"
        if await self._files.search(directory, vim.host.DatastoreBrowser.SearchSpec(matchPattern=[pattern])):
            _log.info("removing %s, left by a creation", self._place.path(path))
            await vmdk.remove(self._session, self._place, self._files, path)

    async def _remove_directory(self, directory: str) -> None:
        """Unless a VM lives there. Where directories at the top are objects, it is known by another name."""
        if self._place.keeps_objects:
            return
        find, where = self._session.content.searchIndex.FindByDatastorePath, self._place.datacenter
        names = [entry.name for entry in await self._files.entries(directory)]
        for name in names:
            path = self._place.path(f"{directory}/{name}")
            if name.endswith(_VMX) and await self._session.call(find, where, path, what=f"looking for the VM {path}"):
                return
        if names:
            _log.info("removing %s, left by a creation", self._place.path(directory))
            await self._files.remove(directory)

    # --- notes; methods that block are called in threads

    def _note(self, machine_id: str) -> Path:
        return self._directory / machine_id

    def _noted(self) -> list[str]:
        self._directory.mkdir(parents=True, exist_ok=True)
        return [path.name for path in self._directory.iterdir()]

    def _read(self, machine_id: str) -> Creation | None:
        """None when there is none, or it was not written whole: the port layer was killed, or the disk was full."""
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            return msgspec.json.decode(self._note(machine_id).read_bytes(), type=Creation)
        return None

    async def _forget(self, machine_id: str) -> None:
        try:
            await asyncio.to_thread(self._note(machine_id).unlink, missing_ok=True)
        except OSError as error:
            _log.warning("the note of a creation stays: %s", error)
