"""Everything that is waited for on vSphere comes through here: a long poll (WaitForUpdatesEx) feeds all who wait.

A *source* is something to be followed: tasks, the VMs of a folder, events. Tasks have a long poll of their own, which
answers at once however much there is to tell of a folder of many VMs. When the connection or the session breaks, the
server forgets what was followed; then every source begins anew with a complete picture, so nothing that happened
meanwhile is missed.

Facts: vSphere Web Services API, PropertyCollector. A filter reports an object's present state first ("enter").
vcsim may report an older state after a newer one, within one answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Protocol

from pyVmomi import vmodl

from portlayer.errors import PortLayerError

if TYPE_CHECKING:
    from portlayer.drivers.vsphere.session import Session

_Collector = vmodl.query.PropertyCollector
# vCenter answers after this long when nothing happens; seconds.
POLL_S = 60
# Before it is followed again, from the first time to when it has failed for long, seconds: an error that comes at once
# is to be no busy loop.
_AGAIN_S, _RETRY_S = 0.1, 10.0
# For the long poll to be answered when it is no longer wanted.
_LAST_ANSWER_S = 2.0
_log = logging.getLogger(__name__)


class Source(Protocol):
    """Something that is followed. Methods run in the event loop and must not raise."""

    async def begin(self, session: Session) -> Any:
        """A PropertyCollector.FilterSpec of what to follow; what is told from now on begins with a complete picture.

        None when there is nothing that could be followed.
        """

    def apply(self, update: Any) -> None:
        """One object came, changed or went: a PropertyCollector.ObjectUpdate."""

    def complete(self) -> None:
        """The updates so far make a consistent picture."""


class Updates:
    """A long poll and its sources; there is none until there is a source."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._sources: list[Source] = []
        self._collector: Any = None
        self._filters: dict[str, Source] = {}
        self._first = True
        self._touched: dict[Source, None] = {}
        self._following: asyncio.Task[None] | None = None
        self._polling: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()

    async def close(self) -> None:
        if self._following is not None:
            polling = self._polling
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_ANSWER_S):
                    await self._end_collector()  # which answers the long poll
            if polling is not None:
                await asyncio.wait([polling], timeout=_LAST_ANSWER_S)
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)

    async def add(self, source: Source) -> None:
        """Follows `source` from now on; returns once the server knows of it."""
        async with self._lock:
            self._sources.append(source)
            if self._collector is not None:
                await self._begin_source(source)
        if self._following is None:
            await self._begin()
            self._following = asyncio.create_task(self._follow())

    def begin_again(self) -> None:
        """Everything is followed anew, in a session that has just begun."""
        if self._polling is not None:
            self._polling.cancel()

    async def _begin(self) -> None:
        session = self._session
        async with self._lock:
            await self._end_collector()
            self._first = True
            self._touched.clear()
            properties = session.content.propertyCollector
            self._collector = await session.call(properties.CreatePropertyCollector, what="following vSphere")
            for source in self._sources:
                await self._begin_source(source)

    async def _end_collector(self) -> None:
        """Ends the one there is, as far as the server still knows it."""
        collector, self._collector = self._collector, None
        self._filters.clear()
        if collector is not None:
            with contextlib.suppress(PortLayerError):
                await self._session.poll(collector.DestroyPropertyCollector)

    async def _begin_source(self, source: Source) -> None:
        spec = await source.begin(self._session)
        if spec is None:
            return
        made = await self._session.call(self._collector.CreateFilter, spec, False, what="following vSphere")
        self._filters[made._moId] = source

    async def _follow(self) -> None:
        again = _AGAIN_S
        while True:
            self._polling = asyncio.create_task(self._poll())
            try:
                await asyncio.wait([self._polling])
            finally:
                self._polling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                if self._collector is None:
                    return  # it was ended for good
                _log.warning("following vSphere broke off: %s", self._polling.exception())
            if not self._first:  # there was something between
                again = _AGAIN_S
            again = await self._begin_until_it_works(again)

    async def _begin_until_it_works(self, pause_s: float) -> float:
        """After a pause, which is longer each time. Gives the pause of the next time."""
        while True:
            await self._session.pause(pause_s)
            pause_s = min(2 * pause_s, _RETRY_S)
            try:
                await self._begin()
                return pause_s
            except PortLayerError as error:  # it is away for long, or the session ended in the middle of this
                _log.error("vSphere cannot be followed, trying on: %s", error)
            except Exception:  # a mistake of ours; but nobody would hear of anything any more
                _log.exception("vSphere cannot be followed, trying on")

    async def _poll(self) -> None:
        """Waits for updates until that fails."""
        options = _Collector.WaitOptions(maxWaitSeconds=POLL_S)
        version = ""
        while True:
            updates = await self._session.poll(self._collector.WaitForUpdatesEx, version, options)
            if updates is not None:
                version = updates.version
                async with self._lock:  # of a source that is just being added, something may be told before its name
                    self._apply(updates)

    def _apply(self, updates: Any) -> None:
        for of_filter in updates.filterSet or ():
            source = self._filters.get(of_filter.filter._moId)
            if source is None:
                continue
            self._touched[source] = None
            for update in of_filter.objectSet or ():
                source.apply(update)
        if updates.truncated:
            return  # the next answer goes on with this one
        # The first answer is the complete picture of everything, also of what has nothing to show.
        touched = list(self._sources if self._first else self._touched)
        self._touched.clear()
        self._first = False
        for source in touched:
            source.complete()
