"""NetworkService: the networks that containers can join; so far "none", loopback alone."""

from __future__ import annotations

import hashlib
from typing import Any

import grpc

from portlayer.errors import NotFoundError
from portlayer.services.status import grpc_errors
from portlayer.v1 import network_pb2 as pb
from portlayer.v1 import network_pb2_grpc

LOOPBACK_ONLY = "none"

Context = grpc.aio.ServicerContext[Any, Any]


def check(name: str) -> None:
    """NotFoundError when there is no network of that name."""
    if name != LOOPBACK_ONLY:
        raise NotFoundError(f"network {name} not found: containers have loopback only so far")


class NetworkServicer(network_pb2_grpc.NetworkServiceServicer):
    """See proto/portlayer/v1/network.proto."""

    def __init__(self, vch_id: str, created_unix_ns: int) -> None:
        network_id = hashlib.sha256(f"{vch_id}/{LOOPBACK_ONLY}".encode()).hexdigest()
        self._networks = [pb.Network(id=network_id, name=LOOPBACK_ONLY, driver="null", created_unix_ns=created_unix_ns)]

    async def ListNetworks(self, request: pb.ListNetworksRequest, context: Context) -> pb.ListNetworksResponse:
        return pb.ListNetworksResponse(networks=self._networks)

    async def GetNetwork(self, request: pb.GetNetworkRequest, context: Context) -> pb.GetNetworkResponse:
        async with grpc_errors(context):
            wanted = request.network
            for network in self._networks:
                if wanted and (network.name == wanted or network.id.startswith(wanted)):
                    return pb.GetNetworkResponse(network=network)
            raise NotFoundError(f"network {wanted} not found")
