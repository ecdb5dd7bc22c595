"""What is done that nobody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from portlayer.drivers.vsphere import operations

# What is under way has this long to end before the connection is closed, seconds.
_CLOSE_S = 3.0


class Background:
    """Of one driver."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def later(self, work: Coroutine[Any, Any, None], what: str) -> None:
        """Does it; `what` is for the log when it goes wrong."""
        task = asyncio.create_task(operations.quietly(work, what))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """What is left then ends with the session, and is found by the next port layer."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_S)
