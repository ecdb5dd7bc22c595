"""A process's output, handed to any number of clients while it is produced."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from portlayer.logs import Chunk

# A client that is so far behind makes the process wait, as a pipe does.
HIGH_WATER_BYTES = 2 << 20


class Subscription:
    """One client's view: an async iterator of chunks up to the end of the run. Close it in any case."""

    def __init__(self, hub: OutputHub) -> None:
        self._hub = hub
        self._chunks: deque[Chunk] = deque()
        self._ended = False
        self._changed = asyncio.Event()
        self.size = 0

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        while True:
            while self._chunks:
                chunk = self._chunks.popleft()
                self.size -= len(chunk.data)
                self._hub.taken()
                yield chunk
            if self._ended:
                return
            self._changed.clear()
            await self._changed.wait()

    def put(self, chunk: Chunk) -> None:
        self._chunks.append(chunk)
        self.size += len(chunk.data)
        self._changed.set()

    def end(self) -> None:
        self._ended = True
        self._changed.set()

    def close(self) -> None:
        """The client has gone."""
        self._hub.drop(self)


class OutputHub:
    """Hands output to those who subscribed. It outlives runs: a subscription ends with the run under way or next."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()
        self._room = asyncio.Event()
        self._relaxed = False
        self.runs_ended = 0

    def subscribe(self) -> Subscription:
        """From now on nothing is missed."""
        subscription = Subscription(self)
        self._subscriptions.add(subscription)
        return subscription

    async def publish(self, chunk: Chunk) -> None:
        """Gives a chunk to everybody; waits while anybody is far behind."""
        for subscription in self._subscriptions:
            subscription.put(chunk)
        while not self._relaxed and any(one.size > HIGH_WATER_BYTES for one in self._subscriptions):
            self._room.clear()
            await self._room.wait()

    def relax(self) -> None:
        """The process is gone: what is left of its output is little, and nobody is to be waited for."""
        self._relaxed = True
        self._room.set()

    def end_run(self) -> None:
        """No more comes from this run."""
        self.runs_ended += 1
        self._relaxed = False
        for subscription in self._subscriptions:
            subscription.end()
        self._subscriptions.clear()
        self._room.set()

    def taken(self) -> None:
        self._room.set()

    def drop(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)
        self._room.set()
