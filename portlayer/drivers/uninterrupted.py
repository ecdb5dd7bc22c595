"""Steps that are worse half done than done for nobody."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_PATIENCE_S = 10.0
_T = TypeVar("_T")
_running: set[asyncio.Future[Any]] = set()
_log = logging.getLogger(__name__)


async def uninterrupted(work: Coroutine[None, None, _T], *, patience_s: float | None = None) -> _T:
    """Runs `work` to its end even when the caller is cancelled, so that nothing is left half done.

    A cancelled caller waits for that; with `patience_s` no longer than so many seconds, then it goes on by itself.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await _outlive(task, patience_s)
        raise


async def remotely(work: Coroutine[None, None, _T]) -> _T:
    """As `uninterrupted`, for what a server does: one that is away must not keep the port layer from ending."""
    return await uninterrupted(work, patience_s=_PATIENCE_S)


async def remotely_made(work: Coroutine[None, None, _T], undo: Callable[[_T], Coroutine[None, None, None]]) -> _T:
    """As `remotely`, for work that makes something: what a cancelled caller does not get is undone, however late."""
    making = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        await _outlive(asyncio.ensure_future(_undone(making, undo)), _PATIENCE_S)
        raise


async def _undone(making: asyncio.Future[_T], undo: Callable[[_T], Coroutine[None, None, None]]) -> None:
    await undo(await making)


async def _outlive(task: asyncio.Future[Any], patience_s: float | None) -> None:
    """Waits for the task, which goes on if that is given up. Nobody but the log hears how it ends."""
    _running.add(task)
    task.add_done_callback(_ended)
    await asyncio.wait([task], timeout=patience_s)


def _ended(task: asyncio.Future[Any]) -> None:
    _running.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.warning("after a cancelled call: %s", error)
