"""Networks: those that the port layer has. Containers join them when they are created.

There is nothing yet that makes a network, or joins or leaves one later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import grpc
import grpc.aio

from personality.api.filters import match_exactly, match_prefix
from personality.backend import Backend
from personality.errors import DockerError, NotServed, from_rpc
from personality.http.messages import Reply, Request, Response
from personality.http.router import Route
from personality.times import rfc3339
from personality.translate.describe import is_running
from personality.translate.networks import is_on
from portlayer.v1 import execution_pb2, network_pb2, types_pb2

_LIST_FILTERS = frozenset({"dangling", "driver", "id", "label", "name", "scope", "type"})
_PRUNE_FILTERS = frozenset({"label", "label!", "until"})

# Docker's own; clients tell users' networks by them.
_BUILT_IN = frozenset({"bridge", "host", "none"})
_NOT_YET = (
    "networks cannot be changed yet: there are those that the host was given, and containers join them by --network"
)


async def list_networks(request: Request, backend: Backend) -> Reply:
    filters = request.query.filters(_LIST_FILTERS)
    response = await backend.network.ListNetworks(network_pb2.ListNetworksRequest())
    return Reply(body=[network_body(network) for network in response.networks if _match(filters, network)])


def _match(filters: Mapping[str, list[str]], network: network_pb2.Network) -> bool:
    names = filters.get("name")
    return (
        (not names or any(name in network.name for name in names))
        and match_prefix(filters.get("id"), network.id)
        and match_exactly(filters.get("driver"), network.driver)
        and match_exactly(filters.get("scope"), "local")
        and match_exactly(filters.get("type"), "builtin" if network.name in _BUILT_IN else "custom")
        and not filters.get("label")
    )


async def inspect_network(request: Request, backend: Backend) -> Reply:
    network = await _network(request, backend)
    containers = await backend.execution.ListContainers(execution_pb2.ListContainersRequest())
    members = {one.id: _member(one) for one in containers.containers if is_running(one) and is_on(one, network.id)}
    return Reply(body=network_body(network) | {"Containers": members})


async def _network(request: Request, backend: Backend) -> network_pb2.Network:
    response = await backend.network.GetNetwork(network_pb2.GetNetworkRequest(network=request.params["id"]))
    return response.network


def _member(container: types_pb2.Container) -> dict[str, str]:
    """EndpointResource of the API; there are no addresses yet."""
    return {"Name": container.name, "EndpointID": "", "MacAddress": "", "IPv4Address": "", "IPv6Address": ""}


async def refuse_unknown_networks(backend: Backend, names: Iterable[str]) -> None:
    """DockerError when one of them is not there: 400, since clients take a 404 for a missing image, and pull it."""
    for name in names:
        try:
            await backend.network.GetNetwork(network_pb2.GetNetworkRequest(network=name))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise DockerError(400, from_rpc(error).message) from error
            raise


def network_body(network: network_pb2.Network) -> dict[str, object]:
    """Network of the API."""
    return {
        "Name": network.name,
        "Id": network.id,
        "Created": rfc3339(network.created_unix_ns),
        "Scope": "local",
        "Driver": network.driver,
        "EnableIPv4": False,
        "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": {}, "Config": []},
        "Internal": False,
        "Attachable": False,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {},
        # For people: the API has no better place.
        "Options": {"description": network.description} if network.description else {},
        "Labels": {},
    }


async def remove_network(request: Request, backend: Backend) -> Response:
    network = await _network(request, backend)
    raise DockerError(403, f"{network.name} is a pre-defined network and cannot be removed")


async def prune_networks(request: Request, backend: Backend) -> Reply:
    request.query.filters(_PRUNE_FILTERS)
    return Reply(body={"NetworksDeleted": []})  # all there are come with the host


async def change_network(request: Request, backend: Backend) -> Response:
    raise NotServed(_NOT_YET)


ROUTES = [
    Route("GET", "/networks", list_networks),
    Route("POST", "/networks/create", change_network),
    Route("POST", "/networks/prune", prune_networks),
    Route("POST", "/networks/{id}/connect", change_network),
    Route("POST", "/networks/{id}/disconnect", change_network),
    Route("GET", "/networks/{id}", inspect_network),
    Route("DELETE", "/networks/{id}", remove_network),
]
