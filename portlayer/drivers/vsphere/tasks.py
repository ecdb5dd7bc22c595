"""Tasks of vSphere: whoever began one waits here for its end, which is told, not asked for.

vcsim may report an older state after a newer one, within one answer; so the end of a task stays the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pyVmomi import vim, vmodl

from portlayer.drivers.vsphere import views
from portlayer.drivers.vsphere.faults import TaskLostError
from portlayer.drivers.vsphere.updates import Updates
from portlayer.errors import DriverError, NotFoundError

if TYPE_CHECKING:
    from portlayer.drivers.vsphere.session import Session

_PATHS = ["info.state", "info.result", "info.error", "info.progress"]
_LOST = "vSphere does not know what became of a task"


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

    def fail(self, error: Exception) -> None:
        if not self.end.done():
            self.end.set_exception(error)


class Tasks:
    """The source of the tasks that somebody waits for: one list view. It has a long poll of its own."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._view: Any = None
        # Some may wait for the same task: who looks for what an earlier attempt made meets the tasks of others.
        self._waiting: dict[str, list[_Waiting]] = {}
        # In the view, though nobody waits any more; they leave it when the next one enters.
        self._done: dict[str, vim.Task] = {}
        # What the view is to be told of next.
        self._new: list[vim.Task] = []
        self._showing: asyncio.Task[None] | None = None
        self._updates = Updates(session)

    async def open(self) -> None:
        await self._updates.add(self)

    async def close(self) -> None:
        """Whoever waits gets DriverError."""
        await self._updates.close()
        self._fail(self._tasks(), DriverError("the session with vSphere is closed"))

    def begin_again(self) -> None:
        """As Updates'."""
        self._updates.begin_again()

    async def begin(self, session: Session) -> Any:
        self._done.clear()
        await views.forget(session, self._view)
        self._view = await session.call(session.content.viewManager.CreateListView, [], what="following tasks")
        if self._waiting:
            await self._look_again()
        return views.filter_of({vim.Task: _PATHS}, self._view)

    async def outcome(self, task: vim.Task, what: str, on_progress: Callable[[int], None] | None = None) -> Any:
        """The result of a task, when it has one. Raises what its fault means; TaskLostError when nobody knows it."""
        waiting = _Waiting(task, on_progress)
        others = self._waiting.setdefault(task._moId, [])
        is_shown = bool(others) or task._moId in self._done
        others.append(waiting)
        try:
            if is_shown:
                await self._look(task)
            else:
                self._show(task)
            await waiting.end
        finally:
            others.remove(waiting)
            if not others:
                del self._waiting[task._moId]
                self._done[task._moId] = task
        if waiting.values.get("info.state") == vim.TaskInfo.State.success:
            return waiting.values.get("info.result")
        fault = waiting.values.get("info.error") or vmodl.MethodFault(msg="it failed without a fault")
        raise await self._session.error(fault, what) from fault

    def _show(self, task: vim.Task) -> None:
        """Has the task followed."""
        self._new.append(task)
        if self._showing is None:
            self._showing = asyncio.create_task(self._show_new())

    async def _show_new(self) -> None:
        """Tasks that come while the server is told of some are told of together. Errors are for those who wait."""
        while self._new:
            new, self._new = self._new, []
            done, self._done = list(self._done.values()), {}
            try:
                unknown = await self._session.call(self._view.ModifyListView, new, done, what="following tasks")
            except NotFoundError:
                continue  # the view went with its session; the next view gets all that are waited for
            except Exception as error:
                self._fail(new, error)
            else:
                self._fail(unknown or (), TaskLostError(_LOST))
        self._showing = None

    async def _look(self, task: vim.Task) -> None:
        """For a task in the view: what it has come to may have been told before, and is not told again."""
        self._done.pop(task._moId, None)
        found = await self._session.read([task], _PATHS)
        if task not in found:
            raise TaskLostError(_LOST)
        self._take(task._moId, found[task])

    def _fail(self, tasks: Iterable[vim.Task], error: Exception) -> None:
        for task in tasks:
            for waiting in self._waiting.get(task._moId, ()):
                waiting.fail(error)

    def apply(self, update: Any) -> None:
        self._take(update.obj._moId, {change.name: change.val for change in update.changeSet or ()})

    def _take(self, key: str, values: dict[str, Any]) -> None:
        for waiting in self._waiting.get(key, ()):
            if not waiting.end.done():
                waiting.take(values)

    def complete(self) -> None:
        pass

    async def _look_again(self) -> None:
        """After a broken connection: the tasks that are still waited for, in the new view."""
        unknown = await self._session.call(self._view.ModifyListView, self._tasks(), [], what="following tasks")
        self._fail(unknown or (), TaskLostError(_LOST))

    def _tasks(self) -> list[vim.Task]:
        """Those that somebody waits for."""
        return [of_one[0].task for of_one in self._waiting.values()]
