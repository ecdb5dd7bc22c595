"""NetworkService: the networks that containers can join."""

from __future__ import annotations

from typing import Any

import grpc

from portlayer.networks import Network, Networks
from portlayer.services.status import grpc_errors
from portlayer.v1 import network_pb2 as pb
from portlayer.v1 import network_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class NetworkServicer(network_pb2_grpc.NetworkServiceServicer):
    """See proto/portlayer/v1/network.proto."""

    def __init__(self, networks: Networks, created_unix_ns: int) -> None:
        self._networks = networks
        self._created_unix_ns = created_unix_ns

    async def ListNetworks(self, request: pb.ListNetworksRequest, context: Context) -> pb.ListNetworksResponse:
        return pb.ListNetworksResponse(networks=[self._message(network) for network in self._networks.all()])

    async def GetNetwork(self, request: pb.GetNetworkRequest, context: Context) -> pb.GetNetworkResponse:
        async with grpc_errors(context):
            return pb.GetNetworkResponse(network=self._message(self._networks.find(request.network)))

    def _message(self, network: Network) -> pb.Network:
        return pb.Network(
            id=network.id,
            name=network.name,
            driver=network.driver,
            created_unix_ns=self._created_unix_ns,
            description=network.description,
        )
