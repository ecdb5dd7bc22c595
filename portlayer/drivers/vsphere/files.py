"""What a directory of a datastore holds, and changes to it: FileManager and the datastore browser.

Paths are relative to the datastore. Every change is harmless when it is made twice, because the session repeats what
broke off: what is gone already is gone, and a directory that is there already is there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pyVmomi import vim

from portlayer.drivers.vsphere import inventory
from portlayer.drivers.vsphere.session import Session
from portlayer.errors import AlreadyExistsError, DriverError, NotFoundError

_TYPE, _TOP_LEVEL = "summary.type", "capability.topLevelDirectoryCreateSupported"
# What `keeps_objects` wants to know of a datastore.
KIND: Final = (_TYPE, _TOP_LEVEL)
# vim.host.FileSystemVolume.FileSystemType, in small letters.
_OBJECT_TYPES = ("vsan", "vsand", "vvol")


@dataclass(frozen=True)
class Entry:
    """A file or directory. `modified` in the server's time, None when it does not say."""

    name: str
    modified: datetime | None


@dataclass(frozen=True)
class Place:
    """A datastore of a datacentre, and how both are called.

    `keeps_objects`: each disk, and each directory at the top, is an object of its own (vSAN, vVols; namespaces.py,
    imported_disks.py). `url`: as vSphere tells it, `ds:///vmfs/volumes/UUID/`.
    """

    datacenter: vim.Datacenter
    datacenter_path: str
    datastore: vim.Datastore
    name: str
    url: str
    keeps_objects: bool
    browser: Any

    def path(self, relative: str) -> str:
        """As vSphere writes it everywhere but in URLs."""
        return f"[{self.name}] {relative}"


async def find(session: Session, datacenter: vim.Datacenter, datastore: vim.Datastore) -> Place:
    """Asks for all that is to be known of a datastore. DriverError when it is gone or no host reaches it."""
    paths = ["name", "summary.url", "summary.accessible", "browser", *KIND]
    facts = (await session.read([datastore], paths)).get(datastore)
    if facts is None or not facts.get("summary.accessible"):
        raise DriverError(f"the datastore {(facts or {}).get('name', datastore)} cannot be reached by any host")
    path = await inventory.path_of(session, datacenter)
    if not path.startswith("/"):
        seen = path or f"the datacenter of {facts['name']}"
        raise DriverError(f"the account may not see all folders that {seen} is in: it needs Read-only on each of them")
    name, url = str(facts["name"]), str(facts["summary.url"])
    return Place(datacenter, path.removeprefix("/"), datastore, name, url, keeps_objects(facts), facts["browser"])


def keeps_objects(facts: Mapping[str, Any]) -> bool:
    """Whether a datastore with these properties, KIND, is one that only DatastoreNamespaceManager makes directories on.

    A capability that is not told is as usual.
    """
    return facts.get(_TOP_LEVEL) is False or str(facts.get(_TYPE)).lower() in _OBJECT_TYPES


async def move(session: Session, method: Callable[..., Any], place: Place, source: str, target: str, what: str) -> None:
    """By a method that moves files or disks. AlreadyExistsError when there is a `target`, NotFoundError when there is
    no `source`.
    """
    where = place.datacenter
    await session.run(
        method, place.path(source), where, place.path(target), where, False, what=f"{what} {place.path(source)}"
    )


async def remove(session: Session, path: str, datacenter: vim.Datacenter) -> None:
    """A file, or a directory with everything in it, by its whole path. No effect when it is gone."""
    with contextlib.suppress(NotFoundError):
        delete = session.content.fileManager.DeleteDatastoreFile_Task
        await session.run(delete, path, datacenter, what=f"removing {path}")


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
        """A file; as `move` above."""
        await move(self._session, self._manager.MoveDatastoreFile_Task, self._place, source, target, "moving")

    async def remove(self, path: str) -> None:
        """As `remove` above."""
        await remove(self._session, self._place.path(path), self._place.datacenter)

    async def entries(self, path: str) -> list[Entry]:
        """What is in a directory; nothing when there is none."""
        browser = vim.host.DatastoreBrowser
        details = browser.FileInfo.Details(fileType=False, fileSize=False, modification=True, fileOwner=False)
        found = await self.search(path, browser.SearchSpec(matchPattern=["*"], details=details))
        return [Entry(str(one.path), one.modification) for one in found]

    async def search(self, directory: str, spec: vim.host.DatastoreBrowser.SearchSpec) -> list[Any]:
        """The FileInfo of what fits in a directory; nothing when there is none."""
        place = self._place
        try:
            found = await self._session.run(
                place.browser.SearchDatastore_Task, place.path(directory), spec, what=f"listing {place.path(directory)}"
            )
        except NotFoundError:
            return []
        return list(found.file or ())
