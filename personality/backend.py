"""The connection to the port layer: one channel, and a stub for each service."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import grpc.aio

from portlayer.v1 import (
    events_pb2_grpc,
    execution_pb2_grpc,
    interaction_pb2_grpc,
    network_pb2_grpc,
    storage_pb2_grpc,
    system_pb2_grpc,
)

# Lists are complete, not paged: a thousand containers with 64 KiB of frontend data each must fit.
_MAX_MESSAGE_BYTES = 128 << 20

_OPTIONS = [
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    # The port layer is local: when it comes back after a restart, be there soon.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # So long may it take until a connection serves, whatever the name says: on a busy machine more than a moment.
    ("grpc.min_reconnect_backoff_ms", 5000),
    # A proxy from the environment has no business between two local processes.
    ("grpc.enable_http_proxy", 0),
]


class Backend:
    """Stubs of the port layer's services at `target` ("unix:///path" or "host:port").

    It connects with the first call, and again after the port layer has gone; calls made while it is away end with
    UNAVAILABLE. To be made within a running event loop; close it by `async with` or close().
    """

    def __init__(self, target: str) -> None:
        channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self._channel = channel
        self.execution = execution_pb2_grpc.ExecutionServiceStub(channel)
        self.interaction = interaction_pb2_grpc.InteractionServiceStub(channel)
        self.storage = storage_pb2_grpc.StorageServiceStub(channel)
        self.network = network_pb2_grpc.NetworkServiceStub(channel)
        self.events = events_pb2_grpc.EventsServiceStub(channel)
        self.system = system_pb2_grpc.SystemServiceStub(channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the calls in flight and the connection."""
        await self._channel.close(None)
