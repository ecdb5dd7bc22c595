"""Steps that are worse half done than done for nobody."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

# A cancelled caller waits so long, seconds: a hypervisor that is away must not keep the port layer from ending.
_PATIENCE_S = 10.0
_T = TypeVar("_T")
_running: set[asyncio.Future[Any]] = set()
_log = logging.getLogger(__name__)


async def uninterrupted(work: Coroutine[None, None, _T]) -> _T:
    """Runs `work` to its end even when the caller is cancelled, so that nothing is left half done.

    A cancelled caller waits for that, though not for ever: then the work goes on by itself.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        _running.add(task)
        task.add_done_callback(_ended)
        await asyncio.wait([task], timeout=_PATIENCE_S)
        raise


def _ended(task: asyncio.Future[Any]) -> None:
    _running.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.warning("after a cancelled call: %s", error)
