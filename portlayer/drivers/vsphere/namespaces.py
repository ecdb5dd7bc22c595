"""Directories at the top of a datastore that keeps objects: each is an object of its own, a namespace (vSAN, vVols).

FileManager does not make them. DatastoreNamespaceManager does, by a name for people, and says the path that is good for
ever, `/vmfs/volumes/DATASTORE/UUID`; the name leads there, but must not be relied upon in paths of disks. Nothing is
kept of it here: whoever asks for the same name finds the same directory, after any crash. What is within is made by
FileManager, as everywhere.

Facts: vSphere Web Services API, DatastoreNamespaceManager; govmomi, object/namespace_manager.go.
"""

from __future__ import annotations

import contextlib
from typing import Any

from portlayer.drivers.vsphere.files import Files, Place
from portlayer.drivers.vsphere.session import Session
from portlayer.errors import AlreadyExistsError, DriverError, NotFoundError

_SCHEME = "ds://"


async def ensure(session: Session, place: Place, directory: str) -> str:
    """Makes what is at the top of `directory`, or finds it again. Gives the path by which `directory` is to be known.

    No effect on other datastores.
    """
    if not place.keeps_objects:
        return directory
    top, slash, rest = directory.partition("/")
    return f"{await _ensure_top(session, place, top)}{slash}{rest}"


async def remove(session: Session, place: Place, files: Files, directory: str) -> None:
    """What `ensure` gave, with the files in it; its disks are gone. No effect when it is gone, on any datastore."""
    if not place.keeps_objects or "/" in directory:
        return await files.remove(directory)
    for entry in await files.entries(directory):
        await files.remove(f"{directory}/{entry.name}")
    path, what = f"{_volume(place)}/{directory}", f"removing {place.path(directory)}"
    with contextlib.suppress(NotFoundError):
        await session.call(_manager(session).DeleteDirectory, place.datacenter, path, what=what)


async def _ensure_top(session: Session, place: Place, name: str) -> str:
    manager, what = _manager(session), f"making the directory {place.path(name)}"
    try:
        path = await session.call(manager.CreateDirectory, place.datastore, name, what=what)
    except AlreadyExistsError:
        url = f"{_SCHEME}{_volume(place)}/{name}"
        path = await session.call(manager.ConvertNamespacePathToUuidPath, place.datacenter, url, what=what)
    found = str(path).rstrip("/").rpartition("/")[2]
    if not found:
        raise DriverError(f"{what}: vSphere does not say where it is")
    return found


def _manager(session: Session) -> Any:
    return session.content.datastoreNamespaceManager


def _volume(place: Place) -> str:
    return place.url.removeprefix(_SCHEME).rstrip("/")
