"""Feeding a request's body into a call of the port layer, with back-pressure all the way to the client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from personality.calls import CallEndedError, StreamingCall, send

# What one message of the port layer's upload calls may hold.
PIECE_BYTES = 1 << 20


async def pieces(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes, none of the pieces longer than PIECE_BYTES."""
    async for chunk in chunks:
        for start in range(0, len(chunk), PIECE_BYTES):
            yield chunk[start : start + PIECE_BYTES]


@contextlib.asynccontextmanager
async def feeding(call: StreamingCall, requests: AsyncIterator[Any]) -> AsyncIterator[None]:
    """Writes `requests` into `call` while the context reads its answers; at the end, the call is over.

    An error of `requests` (the client's body is broken, or ends early) cancels the call and is raised in its place.
    """
    feeder = asyncio.create_task(_feed(call, requests))
    try:
        yield
    except asyncio.CancelledError:
        # Ours, or the call's because its feeder failed?
        if feeder.done() and not feeder.cancelled() and (error := feeder.exception()) is not None:
            raise error from None
        raise
    finally:
        feeder.cancel()
        await asyncio.wait([feeder])
        call.cancel()


async def _feed(call: StreamingCall, requests: AsyncIterator[Any]) -> None:
    try:
        async for request in requests:
            await send(call, request)
        await call.done_writing()
    except CallEndedError:
        return
    except BaseException:
        call.cancel()
        raise
