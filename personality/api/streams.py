"""A process's streams on a client's connection: pumping both ways, and Docker's frames around output."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import Any

import grpc
import grpc.aio

from personality.calls import CallEndedError, send
from personality.detach import DetachScanner
from personality.errors import DockerError
from personality.http.messages import MULTIPLEXED_STREAM, RAW_STREAM, Connection, Request

STDOUT, STDERR = 1, 2
# What reading a call returns at its end.
END: object = grpc.aio.EOF  # type: ignore[attr-defined]
_FRAME = struct.Struct(">BxxxI")
_INPUT_BYTES = 256 << 10
# For what was typed before the detach keys to be handed over; a process that reads nothing is not waited for.
_LAST_INPUT_S = 2.0
# From this version on clients are told by the content type whether there are frames.
_TYPED_VERSION = (1, 42)


def content_type(request: Request, *, terminal: bool) -> str:
    """Of a process's output: frames unless it has a terminal."""
    return RAW_STREAM if terminal or request.api_version < _TYPED_VERSION else MULTIPLEXED_STREAM


def frame(stream: int, data: bytes) -> bytes:
    """Output with Docker's header: stream (1 stdout, 2 stderr), length."""
    return _FRAME.pack(stream, len(data)) + data


async def open_call(stub: Any, first: Any) -> Any:
    """A call of Attach or AttachExec that has sent `first` and heard that it is attached. Raises AioRpcError."""
    call = stub()
    try:
        with contextlib.suppress(CallEndedError):  # reading says why
            await send(call, first)
        if await call.read() is END:
            raise DockerError(500, f"the port layer ended the stream: {await call.details()}")
    except BaseException:
        call.cancel()
        raise
    return call


class Pump:
    """Joins a connection to an Attach or AttachExec call; `run` returns when the process or the client has ended it.

    Of what the call gives, only `streams` reach the client.
    """

    def __init__(
        self,
        call: Any,
        message: type[Any],
        *,
        terminal: bool,
        detach: DetachScanner | None,
        streams: frozenset[int] = frozenset({STDOUT, STDERR}),
    ) -> None:
        self._call = call
        self._message = message
        self._terminal = terminal
        self._detach = detach
        self._streams = streams

    async def run(self, connection: Connection) -> None:
        """Both directions at once. A client's half-close ends stdin, its going ends the call."""
        typing = asyncio.create_task(self._pump_input(connection))
        output = asyncio.create_task(self._pump_output(connection))
        try:
            done, _ = await asyncio.wait((typing, output), return_when=asyncio.FIRST_COMPLETED)
            if typing in done:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LAST_INPUT_S if typing.result() else None):
                        await output
        finally:
            self._call.cancel()
            for task in (typing, output):
                task.cancel()
            await asyncio.gather(typing, output, return_exceptions=True)

    async def _pump_input(self, connection: Connection) -> bool:
        """Passes on what is typed; returns whether the detach keys were pressed."""
        with contextlib.suppress(CallEndedError, asyncio.InvalidStateError, grpc.aio.AioRpcError):
            while data := await connection.read():
                detached = False
                if self._detach is not None:
                    data, detached = self._detach.scan(data)
                for start in range(0, len(data), _INPUT_BYTES):
                    await send(self._call, self._message(stdin=data[start : start + _INPUT_BYTES]))
                if detached:
                    await send(self._call, self._message(detach=True))
                    return True
            await send(self._call, self._message(close_stdin=True))
            await self._call.done_writing()
        return False

    async def _pump_output(self, connection: Connection) -> None:
        try:
            while (response := await self._call.read()) is not END:
                if response.HasField("output"):
                    output = response.output
                    if output.stream in self._streams:
                        await connection.write(output.data if self._terminal else frame(output.stream, output.data))
                elif response.HasField("exited"):
                    break
        except grpc.aio.AioRpcError as error:
            text = f"Error: {error.details()}\r\n".encode()
            await connection.write(text if self._terminal else frame(STDERR, text))
        connection.write_eof()
