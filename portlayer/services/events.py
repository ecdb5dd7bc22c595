"""EventsService: what happens in the VCH."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from portlayer.events import EventHub
from portlayer.services.status import grpc_errors
from portlayer.v1 import events_pb2 as pb
from portlayer.v1 import events_pb2_grpc


class EventsServicer(events_pb2_grpc.EventsServiceServicer):
    """See proto/portlayer/v1/events.proto."""

    def __init__(self, hub: EventHub) -> None:
        self._hub = hub

    async def StreamEvents(
        self, request: pb.StreamEventsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.StreamEventsResponse]:
        async with grpc_errors(context):
            async for event in self._hub.stream(request.since_unix_ns, request.until_unix_ns):
                if event is None:
                    yield pb.StreamEventsResponse()
                    continue
                yield pb.StreamEventsResponse(
                    event=pb.Event(
                        time_unix_ns=event.time_ns,
                        type=event.type,
                        action=event.action,
                        actor_id=event.actor_id,
                        attributes=event.attributes,
                    )
                )
