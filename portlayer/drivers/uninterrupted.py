"""Steps that are worse half done than done for nobody."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import TypeVar

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


async def uninterrupted(work: Coroutine[None, None, _T]) -> _T:
    """Runs `work` to its end even when the caller is cancelled, so that nothing is left half done."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("after a cancelled call: %s", error)
        raise
