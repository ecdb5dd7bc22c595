"""Writing to the port layer's streaming calls."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import grpc.aio
from google.protobuf.message import Message


class StreamingCall(Protocol):
    """A call whose requests are a stream."""

    async def wait_for_connection(self) -> None: ...
    async def done_writing(self) -> None: ...
    def cancel(self) -> bool: ...
    def done(self) -> bool: ...


class CallEndedError(Exception):
    """The port layer has ended the call; whoever reads its answers learns how."""


async def send(call: Any, request: Message) -> None:
    """Writes one request; returns when flow control has taken it. Raises CallEndedError.

    It stands in for the call's own write(), which, when the other side ends the call meanwhile, may put "Internal error
    from Core" in place of the status that is just arriving (grpc.aio as of 1.85).
    """
    try:
        await call.wait_for_connection()
        if call.done():
            raise CallEndedError
        await call._cython_call.send_serialized_message(request.SerializeToString())
    except (grpc.aio.InternalError, grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
        raise CallEndedError from error
