"""What happens to a VCH's VMs without its doing, told to the layers above as changes of its machines.

What a VM is comes from its properties (virtual_machines.py), who did something to it from vSphere's event log
(event_source.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from portlayer.drivers.base import Change, MachineChange
from portlayer.drivers.vsphere import inventory, operations, virtual_machines
from portlayer.drivers.vsphere.background import Background
from portlayer.drivers.vsphere.machine import VsphereMachine
from portlayer.drivers.vsphere.roster import Roster
from portlayer.drivers.vsphere.session import Session
from portlayer.errors import PortLayerError

_VAPP = "parentVApp"
_KINDS = {
    virtual_machines.ON: Change.POWERED_ON,
    "poweredOff": Change.POWERED_OFF,
    "suspended": Change.SUSPENDED,
}


class Changes:
    """`forget` is told of a machine whose VM is gone, before anybody else is."""

    def __init__(
        self, session: Session, roster: Roster, background: Background, forget: Callable[[VsphereMachine], None]
    ) -> None:
        self._session = session
        self._roster = roster
        self._background = background
        self._forget = forget
        self._listener: Callable[[MachineChange], None] | None = None

    def listen(self, listener: Callable[[MachineChange], None]) -> None:
        """As MachineDriver.on_change."""
        self._listener = listener

    def seen(self, vm: Any, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Something about a VM is different: an OnChange of virtual_machines.py. Not every VM is a machine's."""
        machine = self._roster.of(vm)
        if machine is None:
            return
        for change in _differences(machine.id, before, now):
            if change.kind is Change.GONE:
                self._forget(machine)
                self._background.later(removed(machine.directory), f"removing {machine.directory}")
            if change.kind is Change.MOVED:
                parents = before.get(virtual_machines.PARENT), now.get(virtual_machines.PARENT)
                self._background.later(
                    self._tell_move(machine, *parents), f"looking where {machine.location} was moved"
                )
            else:
                self._tell(change)

    def happened(self, vm: Any, kind: Change, words: Mapping[str, str]) -> None:
        """vSphere's event log says so: an OnEvent of event_source.py."""
        if (machine := self._roster.of(vm)) is not None:
            self._tell(MachineChange(machine.id, kind, words))

    def _tell(self, change: MachineChange) -> None:
        if self._listener is not None:
            self._listener(change)

    async def _tell_move(self, machine: VsphereMachine, before: Any, after: Any) -> None:
        """With the paths of both folders, or vApps, as far as the account may see them."""
        paths = {"from": await self._path(machine.vm, before), "to": await self._path(machine.vm, after)}
        self._tell(MachineChange(machine.id, Change.MOVED, {name: path for name, path in paths.items() if path}))

    async def _path(self, vm: Any, parent: Any) -> str:
        """Of a VM's folder; of its vApp where there is none; empty when that is not known."""
        with contextlib.suppress(PortLayerError):
            if parent is None:
                parent = (await self._session.read([vm], [_VAPP])).get(vm, {}).get(_VAPP)
            if parent is not None:
                return await inventory.path_of(self._session, parent)
        return ""


async def removed(directory: Path) -> None:
    """A machine's own."""
    await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


def _differences(machine_id: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[MachineChange]:
    """What they mean."""
    if not now:
        return [MachineChange(machine_id, Change.GONE)]
    found = []
    power, connection = operations.POWER, virtual_machines.CONNECTION
    if before.get(power) not in (None, now.get(power)) and (kind := _KINDS.get(str(now.get(power)))) is not None:
        found.append(MachineChange(machine_id, kind))
    if virtual_machines.PARENT in before and before[virtual_machines.PARENT] != now.get(virtual_machines.PARENT):
        found.append(MachineChange(machine_id, Change.MOVED))
    if before.get(connection) not in (None, now.get(connection)):
        found.append(MachineChange(machine_id, Change.CONNECTION, {"state": str(now.get(connection))}))
    return found
