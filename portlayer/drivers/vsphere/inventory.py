"""Names of things in vSphere's inventory, and the things.

A name is what vCenter shows, or the end of an inventory path ("C0/Resources/gold"), or a whole path from the root
("/DC0/host/C0"), or an object's id ("domain-c8"). A name that fits several things is refused with their paths. vSphere
keeps '/', '\\' and '%' in names as %2f, %5c and %25; both forms are understood.

The inventory is read once, without VMs, names and parents only.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from pyVmomi import vim

from portlayer.drivers.vsphere import views
from portlayer.drivers.vsphere.session import Session
from portlayer.errors import InvalidArgumentError, NotFoundError

# More than anybody reads.
_SHOWN = 20
_READ = (vim.Folder, vim.Datacenter, vim.ComputeResource, vim.HostSystem, vim.ResourcePool, vim.Datastore, vim.Network)
# The root resource pool of every compute resource; people leave it out of paths.
ROOT_POOL = "Resources"


@dataclass(frozen=True)
class Entity:
    """One object of the inventory. `path` is absolute."""

    object: Any
    name: str
    path: str

    @property
    def id(self) -> str:
        return str(self.object._moId)

    def is_meant_by(self, wanted: str) -> bool:
        if wanted in (self.id, self.name):
            return True
        whole, asked = _steps(self.path), _steps(wanted)
        short = [step for step in whole if step != ROOT_POOL]
        if wanted.startswith("/"):
            return asked in (whole, short)
        return any(steps[-len(asked) :] == asked for steps in (whole, short))


class Inventory:
    """A picture of the inventory at one moment."""

    def __init__(self, names: dict[Any, tuple[str, Any]]) -> None:
        """`names` has each object's name and parent."""
        self._names = names

    @classmethod
    async def read(cls, session: Session) -> Inventory:
        """Raises what the session raises."""
        view = await views.everything_below(session, session.content.rootFolder, _READ, "reading the inventory")
        try:
            found = await session.retrieve(views.filter_of(dict.fromkeys(_READ, ("name", "parent")), view))
        finally:
            await views.forget(session, view)
        return cls({one: (str(values.get("name", "")), values.get("parent")) for one, values in found.items()})

    def all(self, kind: type, below: Any = None) -> list[Entity]:
        """Everything of a kind, in the order of paths; `below`: only what is somewhere below that object."""
        entities = [self.entity(one) for one in self._names if isinstance(one, kind) and self._is_below(one, below)]
        return sorted(entities, key=lambda entity: entity.path)

    def entity(self, thing: Any) -> Entity:
        """What is known of an object. NotFoundError when that is nothing."""
        if thing not in self._names:
            raise NotFoundError(f"{thing._moId} is not in the inventory, or the account may not see it")
        path = "".join(f"/{self._names[one][0]}" for one in reversed([thing, *self._parents(thing)]))
        return Entity(thing, _plain(self._names[thing][0]), path)

    def datacenter_of(self, thing: Any) -> Entity:
        """The datacenter that an object is in."""
        for one in (thing, *self._parents(thing)):
            if isinstance(one, vim.Datacenter):
                return self.entity(one)
        raise NotFoundError(f"{self.entity(thing).path} is in no datacenter that the account may see")

    def compute(self, wanted: str | None) -> Entity:
        """A cluster, host or resource pool; the only cluster or host, when none is named.

        A host outside clusters is its compute resource: it stands for the same. InvalidArgumentError when it is not
        clear which one, NotFoundError when there is none of the name.
        """
        hosts = [entity for entity in self.all(vim.HostSystem) if self._is_clustered(entity.object)]
        resources = self.all(vim.ComputeResource)
        if wanted is None:
            return choose("compute resource", "--compute-resource", resources, None)
        pools = [entity for entity in self.all(vim.ResourcePool) if entity.name != ROOT_POOL]
        if wanted.rstrip("/").endswith(f"/{ROOT_POOL}"):
            wanted = wanted.rstrip("/").removesuffix(f"/{ROOT_POOL}")
        return choose("compute resource", "--compute-resource", [*resources, *hosts, *pools], wanted)

    def compute_resource_of(self, thing: Any) -> Entity:
        """The cluster, or the host outside clusters, that a host or resource pool is part of."""
        for one in (thing, *self._parents(thing)):
            if isinstance(one, vim.ComputeResource):
                return self.entity(one)
        raise NotFoundError(f"{self.entity(thing).path} is part of no compute resource that the account may see")

    def _is_clustered(self, host: Any) -> bool:
        return isinstance(self._names[host][1], vim.ClusterComputeResource)

    def _parents(self, thing: Any) -> list[Any]:
        """From the nearest one up, without the root folder, which no path names."""
        chain: list[Any] = []
        parent = self._names[thing][1]
        while parent is not None and parent in self._names and parent not in chain:
            chain.append(parent)
            parent = self._names[parent][1]
        return chain

    def _is_below(self, thing: Any, ancestor: Any) -> bool:
        return ancestor is None or ancestor in self._parents(thing)


async def path_of(session: Session, thing: Any) -> str:
    """The path of one object; it begins with no slash when the account may not see all of it. Raises as the session."""
    path, root = "", session.content.rootFolder  # which no path names
    while thing is not None and thing != root:
        found = (await session.read([thing], ["name", "parent"])).get(thing, {})
        if "name" not in found:
            break
        path, thing = f"/{found['name']}{path}", found.get("parent")
    return path if thing == root else path.lstrip("/")


def choose(what: str, option: str, entities: Iterable[Entity], wanted: str | None) -> Entity:
    """The entity that `wanted` names; the only one when it is None.

    NotFoundError when there is none of that name, InvalidArgumentError when it is not clear which one; the messages
    list what there is. `option` is where people say it.
    """
    entities = list(entities)
    fitting = entities if wanted is None else [entity for entity in entities if entity.is_meant_by(wanted)]
    if len(fitting) == 1:
        return fitting[0]
    if wanted is None:
        if not entities:
            raise NotFoundError(f"there is no {what} that the account may see")
        raise InvalidArgumentError(f"name a {what} ({option}); there are: {listed(entities)}")
    if not fitting:
        there = f"there are: {listed(entities)}" if entities else "there is none that the account may see"
        raise NotFoundError(f"no {what} {wanted!r} ({option}){_meant(entities, wanted)}; {there}")
    paths = ", ".join(sorted(f"{entity.path} ({entity.id})" for entity in fitting[:_SHOWN]))
    raise InvalidArgumentError(f"{option} {wanted!r} fits several: {paths}; give the path or the id")


def _meant(entities: list[Entity], wanted: str) -> str:
    """A guess, since of hundreds of port groups not all are listed."""
    names = {entity.name.lower(): entity.name for entity in entities}
    near = difflib.get_close_matches(wanted.rpartition("/")[2].lower(), names, 3)
    return f"; perhaps {' or '.join(repr(names[one]) for one in near)}" if near else ""


def listed(entities: Iterable[Entity]) -> str:
    """Names for people; paths where names are not enough."""
    entities = list(entities)
    names = [entity.name for entity in entities]
    words = sorted(entity.path if names.count(entity.name) > 1 else entity.name for entity in entities)
    rest = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return ", ".join(words[:_SHOWN]) + rest


def _steps(path: str) -> list[str]:
    return [_plain(step) for step in path.strip("/").split("/")]


def _plain(name: str) -> str:
    """As people write it: vSphere escapes three letters."""
    return unquote(name) if "%" in name else name
