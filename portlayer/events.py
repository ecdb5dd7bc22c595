"""What happened in this VCH: a history on disk, bounded, and a live stream for those who subscribe."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from portlayer.errors import ExhaustedError

MAX_BEHIND = 10_000
# The history is kept in two files of at most this size each.
MAX_FILE_BYTES = 8 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Event:
    """`type` and `action` are Docker's words; `time_ns` counts from 1970."""

    time_ns: int
    type: str
    action: str
    actor_id: str
    attributes: dict[str, str] = field(default_factory=dict)


class EventHub:
    """Records events in `path` and hands them to subscribers."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._previous = path.with_suffix(".1.jsonl")
        self._subscribers: set[asyncio.Queue[Event]] = set()
        self._last_ns = time.time_ns()
        self._size = path.stat().st_size if path.exists() else 0

    def emit(self, type_: str, action: str, actor_id: str, attributes: Mapping[str, str]) -> None:
        """Records an event that happened now. A full disk costs the history, not the event."""
        self._last_ns = max(time.time_ns(), self._last_ns + 1)
        event = Event(self._last_ns, type_, action, actor_id, dict(attributes))
        self._record(event)
        for queue in list(self._subscribers):
            try:
                queue.put_nowait(event)
            except asyncio.QueueFull:
                self._subscribers.discard(queue)  # its reader finds out at the end of what it has

    async def stream(self, since_ns: int, until_ns: int) -> AsyncIterator[Event | None]:
        """None once subscribed, then the history from `since_ns` (0: none) and live events up to `until_ns` (0: ever).

        Raises ExhaustedError when the reader falls too far behind.
        """
        queue: asyncio.Queue[Event] = asyncio.Queue(MAX_BEHIND)
        self._subscribers.add(queue)
        try:
            yield None
            history_end = self._last_ns
            for event in await asyncio.to_thread(self._history, since_ns, until_ns) if since_ns else ():
                if event.time_ns <= history_end:
                    yield event
            async for event in self._live(queue, until_ns):
                if event.time_ns > history_end or not since_ns:
                    yield event
        finally:
            self._subscribers.discard(queue)

    async def _live(self, queue: asyncio.Queue[Event], until_ns: int) -> AsyncIterator[Event]:
        while True:
            if queue.empty() and queue not in self._subscribers:
                raise ExhaustedError(f"the reader of events fell {MAX_BEHIND} events behind")
            remaining = (until_ns - time.time_ns()) / 1e9 if until_ns else None
            if remaining is not None and remaining <= 0:
                return
            try:
                async with asyncio.timeout(remaining):
                    event = await queue.get()
            except TimeoutError:
                return
            yield event

    def _record(self, event: Event) -> None:
        line = json.dumps(asdict(event), separators=(",", ":")).encode() + b"\n"
        try:
            if self._size + len(line) > MAX_FILE_BYTES:
                os.replace(self._path, self._previous)
                self._size = 0
            with open(self._path, "ab", buffering=0) as file:
                file.write(line)
            self._size += len(line)
        except OSError as error:
            _log.error("the event %s %s is not recorded: %s", event.type, event.action, error)

    def _history(self, since_ns: int, until_ns: int) -> list[Event]:
        return [
            event
            for path in (self._previous, self._path)
            for event in _read(path)
            if event.time_ns >= since_ns and not (until_ns and event.time_ns > until_ns)
        ]


def _read(path: Path) -> Iterator[Event]:
    """The events of a file; a line that a crash cut short is passed over."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        for line in file:
            with contextlib.suppress(ValueError, TypeError):
                yield Event(**json.loads(line))
