"""Everything that is waited for on vSphere comes through here: one long poll (WaitForUpdatesEx) feeds all who wait.

A *source* is something to be followed: tasks, the VMs of a folder, events. When the connection or the session breaks,
the server forgets what was followed; then every source begins anew with a complete picture, so nothing that happened
meanwhile is missed.

Facts: vSphere Web Services API, PropertyCollector. A filter reports an object's present state first ("enter").
vcsim may report an older state after a newer one, within one answer; so the end of a task stays the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from pyVmomi import vim, vmodl

from portlayer.drivers.vsphere import faults
from portlayer.drivers.vsphere.faults import TaskLostError
from portlayer.errors import DriverError, NotFoundError, PortLayerError

if TYPE_CHECKING:
    from portlayer.drivers.vsphere.session import Session

_Collector = vmodl.query.PropertyCollector
# vCenter answers after this long when nothing happens; seconds.
POLL_S = 60
# Before it is followed again: an error that comes at once each time is not to become a busy loop.
_AGAIN_S = 0.1
# For the long poll to be answered when it is no longer wanted.
_LAST_ANSWER_S = 2.0
# Between attempts to follow again a server that is away.
_RETRY_S = 10.0
_TASK_PATHS = ["info.state", "info.result", "info.error", "info.progress"]
_log = logging.getLogger(__name__)


class Source(Protocol):
    """Something that is followed. Methods run in the event loop and must not raise."""

    async def begin(self, session: Session) -> Any:
        """A PropertyCollector.FilterSpec of what to follow; what is told from now on begins with a complete picture."""

    def apply(self, update: Any) -> None:
        """One object came, changed or went: a PropertyCollector.ObjectUpdate."""

    def complete(self) -> None:
        """The updates so far make a consistent picture."""


async def forget_view(session: Session, view: Any) -> None:
    """Ends a view that is not followed any more; the server keeps it as long as the session. No effect for None."""
    if view is not None:
        with contextlib.suppress(PortLayerError):  # it went with its session
            await session.call(view.DestroyView, what="ending a view")


class Updates:
    """The long poll and its sources."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._tasks = _Tasks(session)
        self._sources: list[Source] = [self._tasks]
        self._collector: Any = None
        self._filters: dict[str, Source] = {}
        self._first = True
        self._following: asyncio.Task[None] | None = None
        self._polling: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()

    async def open(self) -> None:
        await self._begin()
        self._following = asyncio.create_task(self._follow())

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
        self._tasks.fail(DriverError("the session with vSphere is closed"))

    async def add(self, source: Source) -> None:
        """Follows `source` from now on; returns once the server knows of it."""
        async with self._lock:
            self._sources.append(source)
            if self._collector is not None:
                await self._begin_source(source)

    def begin_again(self) -> None:
        """Everything is followed anew, in a session that has just begun."""
        if self._polling is not None:
            self._polling.cancel()

    async def outcome(self, task: vim.Task, what: str, on_progress: Callable[[int], None] | None) -> Any:
        """The result of a task, when it has one. Raises what its fault means; TaskLostError when nobody knows it."""
        return await self._tasks.outcome(task, what, on_progress)

    async def _begin(self) -> None:
        session = self._session
        async with self._lock:
            await self._end_collector()
            self._first = True
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
        made = await self._session.call(self._collector.CreateFilter, spec, False, what="following vSphere")
        self._filters[made._moId] = source

    async def _follow(self) -> None:
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
            await self._session.pause(_AGAIN_S)
            await self._begin_until_it_works()

    async def _begin_until_it_works(self) -> None:
        while True:
            try:
                return await self._begin()
            except PortLayerError as error:  # the session has tried for some time before it gave up
                _log.error("vSphere cannot be followed, trying on: %s", error)
            await self._session.pause(_RETRY_S)

    async def _poll(self) -> None:
        """Waits for updates until that fails."""
        options = _Collector.WaitOptions(maxWaitSeconds=POLL_S)
        version = ""
        while True:
            updates = await self._session.poll(self._collector.WaitForUpdatesEx, version, options)
            if updates is not None:
                version = updates.version
                self._apply(updates)

    def _apply(self, updates: Any) -> None:
        # The first answer is the complete picture of everything, also of what has nothing to show.
        touched = list(self._sources) if self._first else []
        for of_filter in updates.filterSet or ():
            source = self._filters.get(of_filter.filter._moId)
            if source is None:
                continue
            touched.append(source)
            for update in of_filter.objectSet or ():
                source.apply(update)
        if not updates.truncated:
            self._first = False
            for source in touched:
                source.complete()


class _Waiting:
    """Somebody waits for a task's end."""

    def __init__(self, task: vim.Task, on_progress: Callable[[int], None] | None) -> None:
        self.task = task
        self.values: dict[str, Any] = {}
        self.on_progress = on_progress
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, values: dict[str, Any]) -> None:
        self.values |= values
        if self.values.get("info.state") in (vim.TaskInfo.State.success, vim.TaskInfo.State.error):
            self.end.set_result(None)
        elif self.on_progress is not None and (percent := self.values.get("info.progress")) is not None:
            self.on_progress(percent)

    def fail(self, error: PortLayerError) -> None:
        if not self.end.done():
            self.end.set_exception(error)


class _Tasks:
    """The source of the tasks that somebody waits for: one list view."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._view: Any = None
        # Some may wait for the same task: who looks for what an earlier attempt made meets the tasks of others.
        self._waiting: dict[str, list[_Waiting]] = {}
        # In the view, though nobody waits any more; they leave it when the next one enters.
        self._done: dict[str, vim.Task] = {}

    async def begin(self, session: Session) -> Any:
        self._done.clear()
        await forget_view(session, self._view)
        self._view = await session.call(session.content.viewManager.CreateListView, [], what="following tasks")
        if self._waiting:
            await self._look_again()
        return _Collector.FilterSpec(
            propSet=[_Collector.PropertySpec(type=vim.Task, pathSet=_TASK_PATHS)],
            objectSet=[
                _Collector.ObjectSpec(
                    obj=self._view,
                    skip=True,
                    selectSet=[_Collector.TraversalSpec(type=vim.view.ListView, path="view", skip=False)],
                )
            ],
        )

    async def outcome(self, task: vim.Task, what: str, on_progress: Callable[[int], None] | None) -> Any:
        waiting = _Waiting(task, on_progress)
        others = self._waiting.setdefault(task._moId, [])
        is_shown = bool(others) or task._moId in self._done
        others.append(waiting)
        try:
            if is_shown:
                await self._look(task)
            else:
                await self._show(task)
            await waiting.end
        finally:
            others.remove(waiting)
            if not others:
                del self._waiting[task._moId]
                self._done[task._moId] = task
        if waiting.values.get("info.state") == vim.TaskInfo.State.success:
            return waiting.values.get("info.result")
        fault = waiting.values.get("info.error") or vmodl.MethodFault(msg="it failed without a fault")
        raise faults.translated(fault, what) from fault

    async def _show(self, task: vim.Task) -> None:
        """Has the task followed."""
        done, self._done = list(self._done.values()), {}
        try:
            unknown = await self._session.call(self._view.ModifyListView, [task], done, what="following a task")
        except NotFoundError:
            return  # the view went with its session; the next view gets all that are waited for
        if unknown and task in unknown:
            raise TaskLostError("vSphere does not know what became of a task")

    async def _look(self, task: vim.Task) -> None:
        """For a task in the view: what it has come to may have been told before, and is not told again."""
        self._done.pop(task._moId, None)
        found = await self._session.read([task], _TASK_PATHS)
        if task not in found:
            raise TaskLostError("vSphere does not know what became of a task")
        self._take(task._moId, found[task])

    def apply(self, update: Any) -> None:
        self._take(update.obj._moId, {change.name: change.val for change in update.changeSet or ()})

    def _take(self, key: str, values: dict[str, Any]) -> None:
        for waiting in self._waiting.get(key, ()):
            if not waiting.end.done():
                waiting.take(values)

    def complete(self) -> None:
        pass

    def fail(self, error: PortLayerError) -> None:
        for waiting in self._all():
            waiting.fail(error)

    async def _look_again(self) -> None:
        """After a broken connection: the tasks that are still waited for, in the new view."""
        tasks = [of_one[0].task for of_one in self._waiting.values()]
        unknown = await self._session.call(self._view.ModifyListView, tasks, [], what="following tasks")
        for task in unknown or ():
            for waiting in self._waiting.get(task._moId, ()):
                waiting.fail(TaskLostError("vSphere does not know what became of a task"))

    def _all(self) -> list[_Waiting]:
        return [waiting for of_one in self._waiting.values() for waiting in of_one]
