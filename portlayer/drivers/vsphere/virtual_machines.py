"""The VMs of a folder, followed: what vCenter says of each, and who waits for it to change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from pyVmomi import vim, vmodl

from portlayer.drivers.vsphere.session import Session
from portlayer.drivers.vsphere.updates import forget_view

NAME = "name"
POWER = "runtime.powerState"
CONNECTION = "runtime.connectionState"
CHANGE_VERSION = "config.changeVersion"
_PATHS = [NAME, POWER, CONNECTION, CHANGE_VERSION]
_Collector = vmodl.query.PropertyCollector

# Told of each change: which VM, what was known before, what is known now; empty when it is not there.
OnChange = Callable[[Any, Mapping[str, Any], Mapping[str, Any]], None]


class VirtualMachines:
    """A source of Updates: the VMs below `folder`."""

    def __init__(self, folder: vim.Folder, on_change: OnChange) -> None:
        self._folder = folder
        self._view: Any = None
        self._on_change = on_change
        self._known: dict[str, dict[str, Any]] = {}
        self._objects: dict[str, vim.VirtualMachine] = {}
        self._unconfirmed: set[str] | None = None
        self._changes: dict[str, asyncio.Event] = {}

    async def begin(self, session: Session) -> Any:
        self._unconfirmed = set(self._known)
        views = session.content.viewManager
        await forget_view(session, self._view)
        self._view = await session.call(
            views.CreateContainerView, self._folder, [vim.VirtualMachine], True, what="following the VMs"
        )
        return _Collector.FilterSpec(
            propSet=[_Collector.PropertySpec(type=vim.VirtualMachine, pathSet=_PATHS)],
            objectSet=[
                _Collector.ObjectSpec(
                    obj=self._view,
                    skip=True,
                    selectSet=[_Collector.TraversalSpec(type=vim.view.ContainerView, path="view", skip=False)],
                )
            ],
        )

    def known(self, vm: vim.VirtualMachine, path: str) -> Any:
        """What a property was when vSphere last told of it; None when it has not yet. May lag behind."""
        return self._known.get(vm._moId, {}).get(path)

    def change(self, vm: vim.VirtualMachine) -> asyncio.Event:
        """Set at the next change of this VM, or when it goes. Ask before looking at what may change."""
        return self._changes.setdefault(vm._moId, asyncio.Event())

    def apply(self, update: Any) -> None:
        key = update.obj._moId
        if self._unconfirmed is not None:
            self._unconfirmed.discard(key)
        if update.kind == _Collector.ObjectUpdate.Kind.leave:
            self._gone(key)
            return
        before = dict(self._known.get(key, {}))
        now = self._known.setdefault(key, {})
        self._objects[key] = update.obj
        now |= {change.name: change.val for change in update.changeSet or () if change.op != "remove"}
        self._tell(key, update.obj, before, now)

    def complete(self) -> None:
        """After a new beginning: what was not mentioned has gone meanwhile."""
        if self._unconfirmed is None:
            return
        gone, self._unconfirmed = self._unconfirmed, None
        for key in gone:
            self._gone(key)

    def _gone(self, key: str) -> None:
        before = self._known.pop(key, {})
        vm = self._objects.pop(key, None)
        if vm is not None:
            self._tell(key, vm, before, {})

    def _tell(self, key: str, vm: vim.VirtualMachine, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        if (waiting := self._changes.pop(key, None)) is not None:
            waiting.set()
        self._on_change(vm, before, now)
