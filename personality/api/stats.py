"""Resource usage of containers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from personality.api.containers import get_container
from personality.backend import Backend
from personality.http.messages import Request, Response, Stream
from personality.http.router import Route
from personality.translate.stats import Sample, statistics
from portlayer.v1 import execution_pb2 as pb

# Clients that want one object with a rate in it get the difference over this time.
_RATE_S = 1.0


async def stats(request: Request, backend: Backend) -> Response:
    container = (await get_container(backend, request.params["name"])).container
    streaming = request.query.flag("stream", True)
    at_once = request.query.flag("one-shot")

    async def sample() -> Sample | None:
        call = backend.execution.StreamStats(pb.StreamStatsRequest(container=container.id, one_shot=True))
        return await anext(aiter(call), None)

    def encode(current: Sample, previous: Sample | None) -> bytes:
        return json.dumps(statistics(container.id, container.name, current, previous)).encode() + b"\n"

    async def once() -> AsyncIterator[bytes]:
        previous = None
        current = await sample()
        if current is not None and current.memory_usage_bytes and not at_once:
            previous = current
            await asyncio.sleep(_RATE_S)
            current = await sample()
        yield encode(current or Sample(), previous)

    async def stream() -> AsyncIterator[bytes]:
        call = backend.execution.StreamStats(pb.StreamStatsRequest(container=container.id))
        previous = None
        try:
            async for current in call:
                yield encode(current, previous)
                previous = current
        finally:
            call.cancel()

    return Stream(stream() if streaming else once())


ROUTES = [Route("GET", "/containers/{name}/stats", stats)]
