"""Waiting for what must come about, on a machine that may be busy with other things."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# Far more than anything here takes, and less than what the port layer waits for a guest at most.
PATIENCE_S = 20.0


async def until(true: Callable[[], object]) -> None:
    """Returns when it is; for what has no event to wait for."""
    async with asyncio.timeout(PATIENCE_S):
        while not true():
            await asyncio.sleep(0.005)
