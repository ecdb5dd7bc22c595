"""Waiting for what has no event of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# Seconds; only a test that fails takes as long.
PATIENCE_S = 60.0


async def until(what: Callable[[], object]) -> None:
    """Returns once it is so. Raises TimeoutError."""
    async with asyncio.timeout(PATIENCE_S):
        while not what():
            await asyncio.sleep(0.01)
