"""Calls to an agent whose VM may go off meanwhile: nobody would answer then."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Any, TypeVar

from portlayer.errors import PortLayerError

_T = TypeVar("_T")


async def answer_while_on(call: Awaitable[_T], off: Awaitable[Any], gone: PortLayerError) -> _T:
    """The call's answer or error; raises `gone` as soon as `off`, which waits for the VM's end, is done first."""
    answer, ended = asyncio.ensure_future(call), asyncio.ensure_future(off)
    try:
        await asyncio.wait((answer, ended), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise gone
        return answer.result()
    finally:
        for task in (answer, ended):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, PortLayerError, TimeoutError):
                await task
