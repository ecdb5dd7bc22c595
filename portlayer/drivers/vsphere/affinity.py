"""The group of a VCH's VMs in the cluster's settings, which an administrator ties to hosts by a rule of DRS.

The group is the VCH's own; the rule is the administrator's. VMs join and leave in batches: each change is a
reconfiguration of the whole cluster, of which vCenter does one at a time.
"""

from __future__ import annotations

import asyncio
from typing import Any

from pyVmomi import vim

from portlayer.drivers.uninterrupted import remotely
from portlayer.drivers.vsphere.session import Session
from portlayer.errors import DriverError, PortLayerError

_GROUPS = "configurationEx"
_Operation = vim.option.ArrayUpdateSpec.Operation


class _Batch:
    """Changes that are made together: VMs, and whether they are to be in the group."""

    def __init__(self) -> None:
        self.changes: dict[Any, bool] = {}
        self.begun = False
        self.error: PortLayerError | None = None


class AffinityGroup:
    """A VM group of a cluster."""

    def __init__(self, session: Session, cluster: Any, name: str) -> None:
        self.name = name
        self._session = session
        self._cluster = cluster
        self._lock = asyncio.Lock()
        self._batch = _Batch()

    async def ensure(self) -> None:
        """Makes the group, empty, unless it is there: a rule can then be made before the first container."""
        async with self._lock:
            if await self._members() is None:
                await self._write([], _Operation.add)

    async def join(self, vm: Any) -> None:
        """Puts a VM in. No effect when it is in, or gone."""
        await self._change(vm, inside=True)

    async def leave(self, vm: Any) -> None:
        """Takes a VM out. No effect when it is out, or there is no group."""
        await self._change(vm, inside=False)

    async def remove(self) -> None:
        """Removes the group. No effect when it is gone."""
        async with self._lock:
            if await self._members() is not None:
                spec = vim.cluster.GroupSpec(operation=_Operation.remove, removeKey=self.name)
                await self._reconfigure(spec, f"removing the VM group {self.name}")

    async def _change(self, vm: Any, *, inside: bool) -> None:
        batch = self._batch
        batch.changes[vm] = inside
        async with self._lock:
            if not batch.begun:  # the first of a batch does it for all
                batch.begun, self._batch = True, _Batch()
                batch.error = DriverError(f"changing the VM group {self.name} was interrupted")
                try:
                    await remotely(self._apply(batch.changes))
                    batch.error = None
                except PortLayerError as error:
                    batch.error = error
        if batch.error is not None:
            raise batch.error

    async def _apply(self, changes: dict[Any, bool]) -> None:
        members = await self._members()
        before = set(members or ())
        coming = {vm for vm, inside in changes.items() if inside}
        wanted = (before | coming) - {vm for vm, inside in changes.items() if not inside}
        # One that is gone would make vSphere refuse the whole list.
        there = set(await self._session.read(wanted, ["name"]))
        if there == before or (members is None and not there):
            return
        await self._write(sorted(there, key=lambda vm: str(vm._moId)), _Operation.add if members is None else "edit")

    async def _write(self, vms: list[Any], operation: str) -> None:
        group = vim.cluster.VmGroup(name=self.name, vm=vms)
        spec = vim.cluster.GroupSpec(operation=operation, info=group)
        await self._reconfigure(spec, f"putting VMs into the group {self.name}")

    async def _reconfigure(self, spec: Any, what: str) -> None:
        config = vim.cluster.ConfigSpecEx(groupSpec=[spec])
        await self._session.run(self._cluster.ReconfigureComputeResource_Task, config, True, what=what)

    async def _members(self) -> list[Any] | None:
        """The VMs of the group; None when there is no group."""
        found = await self._session.read([self._cluster], [_GROUPS])
        groups = found.get(self._cluster, {}).get(_GROUPS)
        for group in getattr(groups, "group", None) or ():
            if group.name == self.name:
                if not isinstance(group, vim.cluster.VmGroup):
                    raise DriverError(f"the cluster has a group {self.name!r} that is not one of VMs")
                return list(group.vm or ())
        return None
