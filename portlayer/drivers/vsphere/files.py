"""What a directory of a datastore holds, and changes to it: FileManager and the datastore browser.

Paths are relative to the datastore. Every change is harmless when it is made twice, because the session repeats what
broke off: what is gone already is gone, and a directory that is there already is there.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pyVmomi import vim

from portlayer.drivers.vsphere.session import Session
from portlayer.errors import AlreadyExistsError, DriverError, NotFoundError


@dataclass(frozen=True)
class Entry:
    """A file or directory. `modified` in the server's time, None when it does not say."""

    name: str
    modified: datetime | None


@dataclass(frozen=True)
class Place:
    """A datastore of a datacentre, and how both are called."""

    datacenter: vim.Datacenter
    datacenter_path: str
    datastore: vim.Datastore
    name: str
    kind: str
    browser: Any

    def path(self, relative: str) -> str:
        """As vSphere writes it everywhere but in URLs."""
        return f"[{self.name}] {relative}"


async def find(session: Session, datacenter: vim.Datacenter, datastore: vim.Datastore) -> Place:
    """Asks for all that is to be known of a datastore. DriverError when it is gone or no host reaches it."""
    facts = (await session.read([datastore], ["name", "summary.type", "summary.accessible", "browser"])).get(datastore)
    if facts is None or not facts.get("summary.accessible"):
        raise DriverError(f"the datastore {(facts or {}).get('name', datastore)} cannot be reached by any host")
    kind = str(facts["summary.type"])
    path = await _inventory_path(session, datacenter)
    return Place(datacenter, path, datastore, str(facts["name"]), kind, facts["browser"])


class Files:
    """Methods raise PortLayerError."""

    def __init__(self, session: Session, place: Place) -> None:
        self._session = session
        self._manager = session.content.fileManager
        self._place = place

    async def make_directory(self, path: str) -> None:
        """With those above it."""
        place = self._place
        with contextlib.suppress(AlreadyExistsError):
            await self._session.call(
                self._manager.MakeDirectory, place.path(path), place.datacenter, True, what=f"making {place.path(path)}"
            )

    async def move(self, source: str, target: str) -> None:
        """A file; AlreadyExistsError when there is a `target`, NotFoundError when there is no `source`."""
        place = self._place
        await self._session.run(
            self._manager.MoveDatastoreFile_Task,
            place.path(source),
            place.datacenter,
            place.path(target),
            place.datacenter,
            False,
            what=f"moving {place.path(source)}",
        )

    async def remove(self, path: str) -> None:
        """A file, or a directory with everything in it. No effect when it is gone."""
        place = self._place
        with contextlib.suppress(NotFoundError):
            await self._session.run(
                self._manager.DeleteDatastoreFile_Task,
                place.path(path),
                place.datacenter,
                what=f"removing {place.path(path)}",
            )

    async def entries(self, path: str) -> list[Entry]:
        """What is in a directory; nothing when there is none."""
        place = self._place
        browser = vim.host.DatastoreBrowser
        spec = browser.SearchSpec(
            matchPattern=["*"],
            details=browser.FileInfo.Details(fileType=False, fileSize=False, modification=True, fileOwner=False),
        )
        try:
            found = await self._session.run(
                place.browser.SearchDatastore_Task, place.path(path), spec, what=f"listing {place.path(path)}"
            )
        except NotFoundError:
            return []
        return [Entry(str(one.path), one.modification) for one in found.file or ()]


async def _inventory_path(session: Session, entity: vim.ManagedEntity) -> str:
    """From below the root folder, with slashes between names."""
    names: list[str] = []
    while True:
        facts = (await session.read([entity], ["name", "parent"])).get(entity)
        if facts is None:
            raise DriverError(f"the datacentre of the datastore is gone ({entity})")
        if (parent := facts.get("parent")) is None:
            return "/".join(reversed(names))
        names.append(str(facts["name"]))
        entity = parent
