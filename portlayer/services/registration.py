"""Which services a port layer's server has, with health and reflection, so that any gRPC client finds its way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from portlayer.services.events import EventsServicer
from portlayer.services.execution import ExecutionServicer
from portlayer.services.interaction import InteractionServicer
from portlayer.services.network import NetworkServicer
from portlayer.services.storage import StorageServicer
from portlayer.services.system import SystemServicer
from portlayer.v1 import (
    events_pb2,
    events_pb2_grpc,
    execution_pb2,
    execution_pb2_grpc,
    interaction_pb2,
    interaction_pb2_grpc,
    network_pb2,
    network_pb2_grpc,
    storage_pb2,
    storage_pb2_grpc,
    system_pb2,
    system_pb2_grpc,
)

# For each kind of servicer: the file and name of its service, and what joins the two.
_SERVICES: dict[type, tuple[Any, str, Any]] = {
    EventsServicer: (events_pb2, "EventsService", events_pb2_grpc.add_EventsServiceServicer_to_server),
    ExecutionServicer: (execution_pb2, "ExecutionService", execution_pb2_grpc.add_ExecutionServiceServicer_to_server),
    InteractionServicer: (
        interaction_pb2,
        "InteractionService",
        interaction_pb2_grpc.add_InteractionServiceServicer_to_server,
    ),
    NetworkServicer: (network_pb2, "NetworkService", network_pb2_grpc.add_NetworkServiceServicer_to_server),
    StorageServicer: (storage_pb2, "StorageService", storage_pb2_grpc.add_StorageServiceServicer_to_server),
    SystemServicer: (system_pb2, "SystemService", system_pb2_grpc.add_SystemServiceServicer_to_server),
}


async def register(server: grpc.aio.Server, servicers: Sequence[object]) -> None:
    """Adds the servicers, a health service that calls each of them serving, and reflection."""
    health_servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]
    names = []
    for servicer in servicers:
        module, name, add = _SERVICES[type(servicer)]
        add(servicer, server)
        names.append(module.DESCRIPTOR.services_by_name[name].full_name)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    for name in ("", *names):
        await health_servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    known = (*names, health.SERVICE_NAME, reflection.SERVICE_NAME)
    pool: Any = _Symbols()
    reflection.enable_server_reflection(known, server, pool=pool)


class _Symbols:
    """The default descriptor pool, in which fields and methods are found too: `grpcurl describe` asks for methods.

    Python's pool knows top-level names and messages alone; what is inside one is in the file of what it is inside of.
    """

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:
        """Raises KeyError when there is no such symbol."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            owner, _, member = symbol.rpartition(".")
            file = self._pool.FindFileContainingSymbol(owner)
            service = file.services_by_name.get(owner.removeprefix(f"{file.package}."))
            if service is None or member not in service.methods_by_name:
                raise
            return file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)
