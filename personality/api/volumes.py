"""Volumes: there are none yet, which is what these endpoints say."""

from __future__ import annotations

from personality.backend import Backend
from personality.errors import DockerError, NotServed
from personality.http.messages import Reply, Request, Response
from personality.http.router import Route

_LIST_FILTERS = frozenset({"dangling", "driver", "label", "name"})
_PRUNE_FILTERS = frozenset({"all", "label", "label!"})


async def list_volumes(request: Request, backend: Backend) -> Reply:
    request.query.filters(_LIST_FILTERS)
    return Reply(body={"Volumes": [], "Warnings": []})


async def no_such_volume(request: Request, backend: Backend) -> Response:
    raise DockerError(404, f"get {request.params['name']}: no such volume")


async def prune_volumes(request: Request, backend: Backend) -> Reply:
    request.query.filters(_PRUNE_FILTERS)
    return Reply(body={"VolumesDeleted": [], "SpaceReclaimed": 0})


async def create_volume(request: Request, backend: Backend) -> Response:
    raise NotServed("volumes are not served yet: keep data in the container, or in a tmpfs")


ROUTES = [
    Route("GET", "/volumes", list_volumes),
    Route("POST", "/volumes/create", create_volume),
    Route("POST", "/volumes/prune", prune_volumes),
    Route("GET", "/volumes/{name}", no_such_volume),
    Route("PUT", "/volumes/{name}", no_such_volume),
    Route("DELETE", "/volumes/{name}", no_such_volume),
]
