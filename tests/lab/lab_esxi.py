"""The lab ESXi: for each VM that is powered on in vcsim's inventory, a QEMU of its shape. README.md says what for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lab_hardware import Hardware, LabError, hardware_of
from lab_inventory import ERRORS, Account, Inventory
from lab_machine import OFF, LabMachine, Wanted, prepare_disks
from lab_port import Dial

_AGAIN_SECONDS = 1.0
_log = logging.getLogger(__name__)


class Lab:
    """Works from entering its context to leaving it, when every QEMU has ended. QEMUs die with this process too."""

    def __init__(self, account: Account, dial_as: Callable[[Hardware], Dial]) -> None:
        self._account = account
        self._dial_as = dial_as
        self._machines: dict[str, LabMachine] = {}
        self._directory = Path()
        self._task: asyncio.Task[None] | None = None
        self._inventory: Inventory | None = None
        self._ready = asyncio.Event()

    async def __aenter__(self) -> Self:
        # Sockets and files of QEMUs; what a VM keeps is in its datastore.
        self._directory = Path(tempfile.mkdtemp(prefix="lab-esxi-"))
        self._task = asyncio.create_task(self._run())
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait([self._task, ready], return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if self._task.done():
            await self.__aexit__(None, None, None)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        for machine in self._machines.values():
            await machine.close()
        self._machines.clear()
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)
        if not self._task.cancelled():
            self._task.result()  # what the lab itself has died of

    async def serve(self) -> None:
        """Returns when something is wrong with the lab itself."""
        assert self._task is not None
        await self._task

    async def _run(self) -> None:
        """A simulator that is away, or begins anew, is an ESXi that vCenter has lost: VMs go on meanwhile."""
        while True:
            try:
                self._inventory = inventory = await Inventory.open(self._account)
                try:
                    async for _ in inventory.changes():
                        await self._look(inventory)
                        self._ready.set()
                finally:
                    self._inventory = None
                    await inventory.close()
            except ERRORS as error:
                _log.info("vcsim: %s; trying again", error)
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _look(self, inventory: Inventory) -> None:
        datastores = await inventory.datastores()
        found = await inventory.machines()
        for moref in self._machines.keys() - found.keys():
            await self._machines[moref].close()
            del self._machines[moref]
        for moref, values in found.items():
            try:
                await self._want(moref, values, datastores)
            except LabError as error:
                _log.error("%s: %s", values["name"], error)
                if values["runtime.powerState"] != OFF:
                    await self._report_off(moref)

    async def _want(self, moref: str, values: Mapping[str, Any], datastores: Mapping[str, Path]) -> None:
        power = str(values["runtime.powerState"])
        hardware = hardware_of(values, datastores)
        if moref not in self._machines and power == OFF:
            # A disk may go to another VM before this one is ever on, and nothing says there what it is a delta of.
            await asyncio.to_thread(prepare_disks, hardware)
            return
        wanted = Wanted(
            power=power,
            boot=values.get("summary.runtime.bootTime"),
            host=values["runtime.host"]._moId,
            hardware=hardware,
        )
        if moref not in self._machines:
            self._machines[moref] = LabMachine(
                self._directory / moref,
                self._dial_as,
                self._machines.get,
                lambda: self._report_off(moref),
            )
        self._machines[moref].want(wanted)

    async def _report_off(self, moref: str) -> None:
        if self._inventory is not None:
            with contextlib.suppress(*ERRORS):
                await self._inventory.report_off(moref)
