"""Whether a server answers at all.

One that hangs takes connections and calls, and says nothing. No error comes of that before a call has timed out, and
those who wait for their turn behind it would wait several times as long. So while somebody waits and nothing at all has
been answered for a while, the server is asked for something that whoever lives answers at once: one that is only slow
over a call does. When that is not answered either, all who wait are told together; and until it answers again, nobody
has anything sent to it but that question.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

# It is asked after so long without any answer, seconds, and has so long for that one.
SILENCE_S = 20.0
QUESTION_S = 10.0
_log = logging.getLogger(__name__)


class Pulse:
    """Of the server `name`. `ask` asks it the question; whatever error it says is an answer too."""

    def __init__(self, name: str, ask: Callable[[], Awaitable[Any]]) -> None:
        self._name = name
        self._ask = ask
        self._waiting: set[asyncio.Timeout] = set()
        self._quiet_since = 0.0
        self._answers = asyncio.Event()
        self._answers.set()
        self._watching: asyncio.Task[None] | None = None

    def heard(self) -> None:
        """The server has answered something."""
        self._quiet_since = time.monotonic()
        if not self._answers.is_set():
            _log.warning("%s answers again", self._name)
            self._answers.set()

    @contextlib.asynccontextmanager
    async def felt(self) -> AsyncIterator[None]:
        """For work that needs the server's answers: TimeoutError as soon as it hangs."""
        if not self._waiting and self._answers.is_set():
            self._quiet_since = time.monotonic()  # nobody had asked it anything
        async with asyncio.timeout(None) as wait:
            self._waiting.add(wait)
            if self._watching is None:
                self._watching = asyncio.create_task(self._watch())
            try:
                await self._answers.wait()
                yield
            finally:
                self._waiting.discard(wait)
                if not self._waiting:
                    self._stop_watching()

    def close(self) -> None:
        """Whoever waits gets TimeoutError."""
        self._stop_watching()
        self._tell()

    async def _watch(self) -> None:
        while self._waiting:
            quiet = time.monotonic() - self._quiet_since
            if self._answers.is_set() and quiet < SILENCE_S:
                await asyncio.sleep(SILENCE_S - quiet)
            elif await self._is_alive():
                self.heard()
            else:
                if self._answers.is_set():
                    _log.warning("%s hangs: it has answered nothing for %.0f s", self._name, quiet + QUESTION_S)
                self._answers.clear()
                self._tell()
        self._watching = None

    def _stop_watching(self) -> None:
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()

    async def _is_alive(self) -> bool:
        try:
            async with asyncio.timeout(QUESTION_S):
                await self._ask()
        except TimeoutError:
            return False
        except Exception:  # which those who wait for something hear, too
            return True
        return True

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for wait in waiting:
            wait.reschedule(asyncio.get_running_loop().time())
