"""The fake port layer's streams: attach and logs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from fake_execution import start_exec
from fake_process import STDERR, STDOUT, FakeProcess
from fake_state import FakeState

from portlayer.v1 import interaction_pb2, interaction_pb2_grpc


class Interaction(interaction_pb2_grpc.InteractionServiceServicer):
    def __init__(self, fake: FakeState) -> None:
        self._fake = fake

    async def Attach(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        fake = self._fake
        first = await anext(requests)
        opening = first.open
        await fake.enter("Attach", opening, context)
        container = await fake.container(opening.container, context)
        yield interaction_pb2.AttachResponse(attached=interaction_pb2.Attached())
        # Attaching comes before starting: the process may be yet to come.
        earlier = fake.processes.get(container.id)
        if earlier is not None and earlier.exit_code is not None:
            earlier = None
        process = earlier
        if process is None:
            async with fake.changed:
                before = fake.processes.get(container.id)
                await fake.changed.wait_for(lambda: fake.processes.get(container.id) is not before)
            process = fake.processes[container.id]
        replay = opening.logs or earlier is None
        left = asyncio.Event()
        fake.spawn(_pump_stdin(process, requests, left))
        async for chunk in process.follow(0 if replay else len(process.chunks), left):
            if (chunk.stream == STDOUT and opening.stdout) or (chunk.stream == STDERR and opening.stderr):
                yield interaction_pb2.AttachResponse(output=chunk)
        if left.is_set():
            return
        exit_code = await process.ended()
        yield interaction_pb2.AttachResponse(exited=interaction_pb2.ProcessExited(exit_code=exit_code))

    async def AttachExec(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        first = await anext(requests)
        await self._fake.enter("AttachExec", first.open, context)
        process = await start_exec(self._fake, first.open.exec_id, context)
        yield interaction_pb2.AttachResponse(attached=interaction_pb2.Attached())
        left = asyncio.Event()
        self._fake.spawn(_pump_stdin(process, requests, left))
        async for chunk in process.follow(0, left):
            yield interaction_pb2.AttachResponse(output=chunk)
        if left.is_set():
            return
        exit_code = await process.ended()
        yield interaction_pb2.AttachResponse(exited=interaction_pb2.ProcessExited(exit_code=exit_code))

    async def ReadLogs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._fake.enter("ReadLogs", request, context)
        container = await self._fake.container(request.container, context)
        process = self._fake.processes.get(container.id)
        if process is None:
            return
        wanted = {stream for stream, on in ((STDOUT, request.stdout), (STDERR, request.stderr)) if on}
        stamp = b"2026-01-02T03:04:05.000000006Z " if request.timestamps else b""
        chunks = process.follow() if request.follow else _each(list(process.chunks))
        async for chunk in chunks:
            if chunk.stream in wanted:
                lines = b"".join(stamp + line for line in chunk.data.splitlines(keepends=True))
                yield interaction_pb2.ReadLogsResponse(stream=chunk.stream, data=lines)


async def _each(chunks: list[interaction_pb2.OutputChunk]) -> AsyncIterator[interaction_pb2.OutputChunk]:
    for chunk in chunks:
        yield chunk


async def _pump_stdin(process: FakeProcess, requests: AsyncIterator[Any], left: asyncio.Event) -> None:
    with contextlib.suppress(asyncio.CancelledError, grpc.aio.UsageError, grpc.RpcError):
        async for request in requests:
            if request.WhichOneof("message") == "close_stdin":
                await process.close_stdin()
            elif request.WhichOneof("message") == "detach":
                await process.leave(left)
            else:
                await process.feed(request.stdin)
