"""InteractionService: streams between clients and processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from portlayer.errors import InvalidArgumentError
from portlayer.execution import Container, ExecProcess, Manager
from portlayer.execution.streams import Subscription
from portlayer.logs import Chunk, LogQuery, read
from portlayer.services.status import grpc_errors
from portlayer.v1 import interaction_pb2 as pb
from portlayer.v1 import interaction_pb2_grpc

STDOUT, STDERR = 1, 2

Context = grpc.aio.ServicerContext[Any, Any]
Input = pb.AttachRequest | pb.AttachExecRequest


class InteractionServicer(interaction_pb2_grpc.InteractionServiceServicer):
    """See proto/portlayer/v1/interaction.proto."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    async def Attach(
        self, requests: AsyncIterator[pb.AttachRequest], context: Context
    ) -> AsyncIterator[pb.AttachResponse]:
        async with grpc_errors(context):
            first = await anext(aiter(requests), None)
            if first is None or not first.HasField("open"):
                raise InvalidArgumentError("the first message must be `open`")
            container = self._manager.get(first.open.container)
            async with contextlib.aclosing(_attach(container, first.open, requests)) as responses:
                async for response in responses:
                    yield response

    async def AttachExec(
        self, requests: AsyncIterator[pb.AttachExecRequest], context: Context
    ) -> AsyncIterator[pb.AttachResponse]:
        async with grpc_errors(context):
            first = await anext(aiter(requests), None)
            if first is None or not first.HasField("open"):
                raise InvalidArgumentError("the first message must be `open`")
            container, process = self._manager.get_exec(first.open.exec_id)
            async with contextlib.aclosing(_attach_exec(container, process, requests)) as responses:
                async for response in responses:
                    yield response

    async def ReadLogs(self, request: pb.ReadLogsRequest, context: Context) -> AsyncIterator[pb.ReadLogsResponse]:
        async with grpc_errors(context):
            container = self._manager.get(request.container)
            query = LogQuery(
                streams=_streams(request.stdout, request.stderr),
                since_ns=request.since_unix_ns,
                until_ns=request.until_unix_ns,
                tail=request.tail if request.HasField("tail") else None,
                timestamps=request.timestamps,
            )
            follow = (lambda: container.live) if request.follow else None
            async for chunk in read(container.log, query, follow_while=follow):
                yield pb.ReadLogsResponse(stream=_stream(chunk.stream), data=chunk.data)


async def _attach(
    container: Container, open_: pb.AttachOpen, requests: AsyncIterator[pb.AttachRequest]
) -> AsyncGenerator[pb.AttachResponse, None]:
    streams = _streams(open_.stdout, open_.stderr)
    # Subscribed before `attached` is said: nothing is missed from then on.
    subscription = container.output.subscribe() if open_.stream else None
    container.emit("attach")
    once = container.spec.process.stdin_once and not container.spec.process.terminal

    async def close_stdin() -> None:
        if once:
            await container.stdin_close()

    leaving = asyncio.Event()

    def leave() -> None:
        leaving.set()
        container.log.notify()  # a reader of the log looks again whether to go on
        if subscription is not None:
            subscription.end()

    feeder = None
    if open_.stdin and open_.stream:
        feeder = _feed(requests, container.stdin_write, close_stdin, leave)
    left = True
    try:
        yield pb.AttachResponse(attached=pb.Attached())
        async for chunk in _output(container, open_, streams, subscription, leaving):
            if chunk.stream in streams:
                yield _response(chunk)
        left = leaving.is_set()
    finally:
        if subscription is not None:
            subscription.close()
        if feeder is not None:
            feeder.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await feeder
            if container.live:
                await close_stdin()
        if left:  # and was not left by the run's end: docker run takes this event for the end of its own business
            container.emit("detach")


async def _output(
    container: Container,
    open_: pb.AttachOpen,
    streams: frozenset[int],
    subscription: Subscription | None,
    leaving: asyncio.Event,
) -> AsyncIterator[Chunk]:
    """The log, the live output, or one after the other without a gap."""
    if open_.logs:
        # Whoever wants the past follows the log: where it ends and the present begins is then no question.
        runs = container.output.runs_ended

        def goes_on() -> bool:
            return container.output.runs_ended == runs and not leaving.is_set()

        follow = goes_on if subscription is not None else None
        if subscription is not None:
            subscription.close()
        async for chunk in read(container.log, LogQuery(streams=streams), follow_while=follow):
            yield chunk
    elif subscription is not None:
        async for chunk in subscription:
            yield chunk


async def _attach_exec(
    container: Container, process: ExecProcess, requests: AsyncIterator[pb.AttachExecRequest]
) -> AsyncGenerator[pb.AttachResponse, None]:
    subscription = process.hub.subscribe()
    leaving = asyncio.Event()

    def leave() -> None:
        leaving.set()
        subscription.end()

    feeder: asyncio.Task[None] | None = None
    try:
        await container.execs.start(process)
        stdin = process.stdin
        yield pb.AttachResponse(attached=pb.Attached())
        if stdin is not None:
            feeder = _feed(requests, stdin.write, stdin.close, leave)
        async for chunk in subscription:
            yield _response(chunk)
        if leaving.is_set():
            return
        await process.ended.wait()
        yield pb.AttachResponse(exited=pb.ProcessExited(exit_code=process.exit_code or 0))
    finally:
        subscription.close()
        if feeder is not None:
            feeder.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await feeder
        if process.running and process.stdin is not None and not process.spec.terminal:
            await process.stdin.close()  # its only client has gone: no more input will come


def _feed(
    requests: AsyncIterator[Any],
    write: Callable[[bytes], Awaitable[None]],
    close: Callable[[], Awaitable[None]],
    leave: Callable[[], None],
) -> asyncio.Task[None]:
    """Passes a client's input on in the background, for as long as the client sends."""

    async def feed() -> None:
        async for request in requests:
            if request.stdin:
                await write(request.stdin)
            if request.close_stdin:
                await close()
                return
            if request.detach:
                leave()
                return

    return asyncio.create_task(feed(), name="stdin")


def _response(chunk: Chunk) -> pb.AttachResponse:
    return pb.AttachResponse(output=pb.OutputChunk(stream=_stream(chunk.stream), data=chunk.data))


def _stream(number: int) -> Any:
    return number  # the enum's numbers are the log's


def _streams(stdout: bool, stderr: bool) -> frozenset[int]:
    return frozenset(number for number, wanted in ((STDOUT, stdout), (STDERR, stderr)) if wanted)
