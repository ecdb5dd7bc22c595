"""The VMs of a VCH, followed: what vCenter says of each, and who waits for it to change.

They are found in a folder. One that leaves it is looked for: an administrator may have moved it, and then it is
followed wherever it is, for good. It is gone when it does not exist any more, or is where the account may not see it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from pyVmomi import vim, vmodl

from portlayer.drivers.vsphere import questions, views
from portlayer.drivers.vsphere.faults import caused_by
from portlayer.drivers.vsphere.operations import POWER
from portlayer.drivers.vsphere.questions import QUESTION
from portlayer.drivers.vsphere.session import Session
from portlayer.errors import NotFoundError, PortLayerError

NAME = "name"
# A folder; unset in a vApp.
PARENT = "parent"
ON = "poweredOn"
CONNECTION = "runtime.connectionState"
CHANGE_VERSION = "config.changeVersion"
_PATHS = [NAME, PARENT, POWER, CONNECTION, CHANGE_VERSION, QUESTION]
# For somebody to answer what vSphere asks about a VM, seconds.
ANSWER_S = 10.0
# Between looks for VMs when vCenter does not answer, seconds; each of them has been tried for some time.
_LOOK_AGAIN_S = 5.0
_Collector = vmodl.query.PropertyCollector
_log = logging.getLogger(__name__)

# Told of each change: which VM, what was known before, what is known now; empty when it is not there.
OnChange = Callable[[Any, Mapping[str, Any], Mapping[str, Any]], None]
# Does what nobody waits for; with words for the log.
Later = Callable[[Coroutine[Any, Any, None], str], None]


class VirtualMachines:
    """A source of Updates: the VMs below `folder`, and those that were moved out of it."""

    def __init__(self, session: Session, folder: vim.Folder, on_change: OnChange, later: Later) -> None:
        self._session = session
        self._folder = folder
        self._within: Any = None  # a view of the folder
        self._elsewhere: Any = None  # a view of those that were moved out of it
        self._on_change = on_change
        self._later = later
        self._known: dict[str, dict[str, Any]] = {}
        self._objects: dict[str, vim.VirtualMachine] = {}
        self._unconfirmed: set[str] | None = None
        # Not seen any more, and to be looked for.
        self._left: dict[str, vim.VirtualMachine] = {}
        self._is_looking = False
        self._changes: dict[str, asyncio.Event] = {}

    async def begin(self, session: Session) -> Any:
        for view in (self._within, self._elsewhere):
            await views.forget(session, view)
        what = "following the VMs"
        self._within = await views.everything_below(session, self._folder, [vim.VirtualMachine], what)
        self._elsewhere = await session.call(session.content.viewManager.CreateListView, [], what=what)
        self._unconfirmed = set(self._known)
        return views.filter_of({vim.VirtualMachine: _PATHS}, self._within, self._elsewhere)

    def known(self, vm: vim.VirtualMachine, path: str) -> Any:
        """What a property was when vSphere last told of it; None when it has not yet. May lag behind."""
        return self._known.get(vm._moId, {}).get(path)

    def is_on(self, vm: vim.VirtualMachine) -> bool:
        """As vSphere told last."""
        return str(self.known(vm, POWER)) == ON

    def change(self, vm: vim.VirtualMachine) -> asyncio.Event:
        """Set at the next change of this VM, or when it goes. Ask before looking at what may change."""
        return self._changes.setdefault(vm._moId, asyncio.Event())

    async def asked(self, vm: vim.VirtualMachine) -> Any:
        """Waits until vSphere asks something about this VM, and for some time nobody answers. Gives the question."""
        while True:
            change, question = self.change(vm), self.known(vm, QUESTION)
            if question is not None and await self._is_left_open(vm, question):
                return question
            await change.wait()

    async def _is_left_open(self, vm: vim.VirtualMachine, question: Any) -> bool:
        """Whether it is still asked after the time for an answer, whatever else of the VM changes meanwhile."""
        try:
            async with asyncio.timeout(ANSWER_S):
                while (now := self.known(vm, QUESTION)) is not None and now.id == question.id:
                    await self.change(vm).wait()
        except TimeoutError:
            return True
        return False

    def follow(self, vms: Sequence[vim.VirtualMachine]) -> None:
        """Follows VMs that are not in the folder, as soon as vSphere can be asked."""
        for vm in vms:
            self._known.setdefault(vm._moId, {})
            self._objects[vm._moId] = self._left[vm._moId] = vm
        self._look_for_those_that_left()

    def apply(self, update: Any) -> None:
        key = update.obj._moId
        if self._unconfirmed is not None:
            self._unconfirmed.discard(key)
        if update.kind == _Collector.ObjectUpdate.Kind.leave:
            self._left[key] = update.obj
            return
        self._left.pop(key, None)
        before = dict(self._known.get(key, {}))
        now = self._known.setdefault(key, {})
        self._objects[key] = update.obj
        if update.kind == _Collector.ObjectUpdate.Kind.enter:
            now.pop(QUESTION, None)  # a complete picture has none when nothing is asked any more
        now |= {change.name: change.val for change in update.changeSet or ()}
        if (question := now.get(QUESTION)) is not None and before.get(QUESTION) is None:
            told = questions.words(question)
            _log.warning("the VM %s stands still until somebody answers in vCenter: %s", now.get(NAME, key), told)
        self._tell(key, update.obj, before, now)

    def complete(self) -> None:
        """After a new beginning, what was not mentioned was moved, or has left meanwhile."""
        if self._unconfirmed is not None:
            self._left |= {key: self._objects[key] for key in self._unconfirmed & self._objects.keys()}
            self._unconfirmed = None
        self._look_for_those_that_left()

    def _look_for_those_that_left(self) -> None:
        if self._left and not self._is_looking:
            self._is_looking = True
            self._later(self._look(), "looking for VMs that left the folder")

    async def _look(self) -> None:
        """VMs that leave meanwhile are looked for together."""
        try:
            while self._left:
                left, self._left = self._left, {}
                try:
                    await self._find(list(left.values()))
                except PortLayerError as error:
                    _log.info("whether VMs were moved or removed is not known yet: %s", error)
                    self._left = left | self._left
                    await self._session.pause(_LOOK_AGAIN_S)
        finally:
            self._is_looking = False

    async def _find(self, vms: list[vim.VirtualMachine]) -> None:
        """Those that were moved are followed; the others are gone. One that is moved back is in two views."""
        seen, missing = await self._seen(vms), None
        if seen:
            show, what = self._elsewhere.ModifyListView, "following VMs that were moved"
            missing = await self._session.call(show, seen, [], what=what)
        for vm in [*(vm for vm in vms if vm not in seen), *(missing or ())]:
            self._gone(vm._moId)

    async def _seen(self, vms: list[vim.VirtualMachine]) -> list[vim.VirtualMachine]:
        """Which of these VMs exist where the account may see them."""
        try:
            found = await self._session.read(vms, [POWER])
        except PortLayerError as error:
            unseen = caused_by(error, vim.fault.NoPermission) and not caused_by(error, vim.fault.NotAuthenticated)
            if not unseen and not isinstance(error, NotFoundError):
                raise
            if len(vms) > 1:
                return [seen for vm in vms for seen in await self._seen([vm])]
            found = {vms[0]: {}} if unseen else {}
        for vm in [vm for vm, values in found.items() if POWER not in values]:
            _log.error(
                "the VM %s was moved to where this account may not see it: to its VCH it is removed. Let the account"
                " see it, or move it back, and start the VCH again",
                self.known(vm, NAME) or vm._moId,
            )
            del found[vm]
        return list(found)

    def _gone(self, key: str) -> None:
        before = self._known.pop(key, {})
        vm = self._objects.pop(key, None)
        if vm is not None:
            self._tell(key, vm, before, {})

    def _tell(self, key: str, vm: vim.VirtualMachine, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        if (waiting := self._changes.pop(key, None)) is not None:
            waiting.set()
        self._on_change(vm, before, now)
