"""Endpoints of Docker's API that this host does not serve, and the sentence that each answers with.

These routes come last, so that an endpoint leaves this table simply by being served.
"""

from __future__ import annotations

from personality.backend import Backend
from personality.errors import DockerError, NotServed
from personality.http.messages import Handler, Reply, Request, Response
from personality.http.router import Route

_BUILD = "building images is not served: build elsewhere, docker save there and docker load here"
_REGISTRY = "registries are not served yet: docker load an archive instead"
_PUSH = "pushing images is not served yet: docker save an archive instead"
_COPY = "copying files into and out of containers is not served yet: use docker exec with tar"
_PLUGINS = "plugins are not served"
_SWARM = "swarm mode is not served"
_WEBSOCKET = "attaching by WebSocket is not served: use the attach endpoint"

_NOT_A_MANAGER = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm '
    "and try again."
)

_NOT_SERVED = {
    _BUILD: [("POST", "/build"), ("POST", "/session"), ("POST", "/grpc"), ("POST", "/build/cancel")],
    _REGISTRY: [("GET", "/images/search"), ("POST", "/auth"), ("GET", "/distribution/{name:.+}/json")],
    _PUSH: [("POST", "/images/{name:.+}/push")],
    "making images from containers is not served yet": [("POST", "/commit")],
    _COPY: [(method, "/containers/{id}/archive") for method in ("GET", "HEAD", "PUT")],
    "the changes of a container's file system are not served yet": [("GET", "/containers/{id}/changes")],
    "exporting a container's file system is not served yet": [("GET", "/containers/{id}/export")],
    _WEBSOCKET: [("GET", "/containers/{id}/attach/ws")],
    _PLUGINS: [
        ("GET", "/plugins/privileges"),
        ("POST", "/plugins/pull"),
        ("POST", "/plugins/create"),
        ("POST", "/plugins/{name:.+}/enable"),
        ("POST", "/plugins/{name:.+}/disable"),
        ("POST", "/plugins/{name:.+}/upgrade"),
        ("POST", "/plugins/{name:.+}/push"),
        ("POST", "/plugins/{name:.+}/set"),
        ("DELETE", "/plugins/{name:.+}"),
    ],
    _SWARM: [("POST", f"/swarm/{word}") for word in ("init", "join", "leave", "update", "unlock")],
}

_SWARM_OBJECTS = ("services", "nodes", "tasks", "secrets", "configs")


def _not_served(sentence: str) -> Handler:
    async def handler(request: Request, backend: Backend) -> Response:
        raise NotServed(sentence)

    return handler


async def not_a_manager(request: Request, backend: Backend) -> Response:
    raise DockerError(503, _NOT_A_MANAGER)


async def no_such_plugin(request: Request, backend: Backend) -> Response:
    # Not 501: docker inspect looks for a name among containers, images, networks, ... and plugins.
    raise DockerError(404, f'plugin "{request.params["name"]}" not found')


async def list_plugins(request: Request, backend: Backend) -> Reply:
    return Reply(body=[])


async def prune_build_cache(request: Request, backend: Backend) -> Reply:
    return Reply(body={"CachesDeleted": [], "SpaceReclaimed": 0})  # nothing is built here, so nothing is cached


ROUTES = [
    Route("GET", "/plugins", list_plugins),
    Route("GET", "/plugins/{name:.+}/json", no_such_plugin),
    Route("POST", "/build/prune", prune_build_cache),
    *(
        Route(method, pattern, _not_served(sentence))
        for sentence, endpoints in _NOT_SERVED.items()
        for method, pattern in endpoints
    ),
    Route("GET", "/swarm", not_a_manager),
    Route("GET", "/swarm/unlockkey", not_a_manager),
    *(
        Route(method, f"/{kind}{rest}", not_a_manager)
        for kind in _SWARM_OBJECTS
        for method, rest in (
            ("GET", ""),
            ("POST", "/create"),
            ("GET", "/{id}/logs"),
            ("POST", "/{id}/update"),
            ("GET", "/{id}"),
            ("DELETE", "/{id}"),
        )
    ),
]
