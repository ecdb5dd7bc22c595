"""A port layer in memory: real gRPC on a Unix socket, containers whose programs are scripts.

    async with FakePortLayer.serving(path) as fake:
        fake.add_image("busybox:latest")
        fake.scripts["web"] = Script(stdout=b"hello\n", exit_code=3)   # by the container's name, or "*"
        fake.fail("StartContainer", grpc.StatusCode.ABORTED, "...", launch_failed=LaunchFailed(exit_code=127))

Every call is recorded in `calls`. `blocked` holds method names whose calls never answer ("LoadImages, read": but only
after having read all of its requests); `cancelled` the names of calls that ended by cancellation.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

import grpc.aio
from fake_execution import Execution
from fake_interaction import Interaction
from fake_state import FakeState
from fake_storage import Storage
from fake_system import Events, Network, System

from portlayer.v1 import (
    events_pb2_grpc,
    execution_pb2_grpc,
    interaction_pb2_grpc,
    network_pb2_grpc,
    storage_pb2_grpc,
    system_pb2_grpc,
)


class FakePortLayer(FakeState):
    """All services in front of one state."""

    @classmethod
    @contextlib.asynccontextmanager
    async def serving(cls, path: Path) -> AsyncIterator[Self]:
        """Serves at unix://`path`."""
        fake = cls()
        server = grpc.aio.server()
        execution_pb2_grpc.add_ExecutionServiceServicer_to_server(Execution(fake), server)
        interaction_pb2_grpc.add_InteractionServiceServicer_to_server(Interaction(fake), server)
        storage_pb2_grpc.add_StorageServiceServicer_to_server(Storage(fake), server)
        network_pb2_grpc.add_NetworkServiceServicer_to_server(Network(fake), server)
        events_pb2_grpc.add_EventsServiceServicer_to_server(Events(fake), server)
        system_pb2_grpc.add_SystemServiceServicer_to_server(System(fake), server)
        server.add_insecure_port(f"unix://{path}")
        await server.start()
        try:
            yield fake
        finally:
            for task in fake.tasks:
                task.cancel()
            await server.stop(None)
