"""A guest that QEMU stopped because the host's disk is full, and how it goes on.

To the guest such a stop is nothing but a slow disk: no write fails, no file system is damaged. Nobody tells when a disk
has room again, so it is looked at now and then.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from portlayer.errors import DriverError

RETRY_SECONDS = 2.0
# Less than this would be used up at once.
_ENOUGH_BYTES = 4 << 20
_log = logging.getLogger(__name__)


class Stall:
    """Watches for space in the file system of `directory` from `begin` on, then calls `go_on` once."""

    def __init__(self, directory: Path, go_on: Callable[[], Awaitable[None]]) -> None:
        self._directory = directory
        self._go_on = go_on
        self._task: asyncio.Task[None] | None = None

    @property
    def under_way(self) -> bool:
        """Whether a stopped guest waits for space."""
        return self._task is not None

    def begin(self) -> None:
        """The guest was stopped. No effect when that is known."""
        if self._task is None:
            self._task = asyncio.create_task(self._watch())

    def end(self) -> None:
        """The guest is off, or someone else decides when it goes on."""
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            try:
                status = os.statvfs(self._directory)
                if status.f_bavail * status.f_frsize < _ENOUGH_BYTES:
                    continue
                self._task = None  # it may be stopped again at once
                await self._go_on()
            except (OSError, DriverError) as error:
                self._task = None
                _log.warning("a guest stopped for lack of space was not let go on: %s", error)
            return
