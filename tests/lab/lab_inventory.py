"""The lab's login at vcsim: what VMs there are, what they ought to be, and how to tell of one that went off by itself.

Changes are only taken as hints to look again: vcsim may report an older state after a newer one.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

from lab_hardware import PATHS
from pyVim.connect import SmartConnect
from pyVmomi import vim, vmodl

_Collector = vmodl.query.PropertyCollector
_WAIT_SECONDS = 60
_WATCHED = ("runtime.powerState", "runtime.host", "summary.runtime.bootTime", "config.hardware.device")
ERRORS = (vmodl.MethodFault, OSError, http.client.HTTPException, ExpatError)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Account:
    """Where vcsim is and who the lab is there."""

    host: str
    port: int
    user: str
    password: str


class Inventory:
    """One login. Methods raise one of ERRORS; then it is of no further use."""

    def __init__(self, service: Any) -> None:
        self._service = service
        self._threads = ThreadPoolExecutor(4, "lab")
        self._content = service.content
        self._collector = self._content.propertyCollector.CreatePropertyCollector()
        self._view = self._content.viewManager.CreateContainerView(
            self._content.rootFolder, [vim.VirtualMachine, vim.Datastore], True
        )

    @classmethod
    async def open(cls, account: Account) -> Inventory:
        # The lab believes whoever is there: it is a part of the test's own machinery.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE

        def connect() -> Inventory:
            return cls(
                SmartConnect(
                    host=account.host,
                    port=account.port,
                    user=account.user,
                    pwd=account.password,
                    sslContext=context,
                    connectionPoolTimeout=-1,
                )
            )

        return await asyncio.to_thread(connect)

    async def close(self) -> None:
        """Logs out, and waits for whatever is under way, cancelled or not."""
        for last in (self._collector.CancelWaitForUpdates, self._content.sessionManager.Logout):
            with contextlib.suppress(*ERRORS):
                await self._in_thread(last)
        await asyncio.to_thread(self._threads.shutdown)
        self._service._stub.DropConnections()

    async def changes(self) -> AsyncIterator[set[str]]:
        """The morefs of VMs that came or changed; all, first."""
        extra = _Collector.PropertySpec(type=vim.VirtualMachine, pathSet=[*_WATCHED, "config.extraConfig"])
        await self._in_thread(self._collector.CreateFilter, self._filter_spec([extra]), False)
        version = ""
        options = _Collector.WaitOptions(maxWaitSeconds=_WAIT_SECONDS)
        while True:
            updates = await self._in_thread(self._collector.WaitForUpdatesEx, version, options)
            if updates is None:
                continue
            version = updates.version
            yield {update.obj._moId for one in updates.filterSet or () for update in one.objectSet or ()}

    async def machines(self) -> dict[str, Mapping[str, Any]]:
        """The properties of every VM at PATHS, by moref; those that are being made are left out."""
        found = await self._read(_Collector.PropertySpec(type=vim.VirtualMachine, pathSet=list(PATHS)))
        return {moref: values for moref, values in found.items() if "config.hardware.device" in values}

    async def datastores(self) -> dict[str, Path]:
        """Their directories, by name."""
        found = await self._read(_Collector.PropertySpec(type=vim.Datastore, pathSet=["name", "summary.url"]))
        return {values["name"]: Path(values["summary.url"].removeprefix("file://")) for values in found.values()}

    async def report_off(self, moref: str) -> None:
        """As ESXi tells vCenter that a VM is off."""
        machine = vim.VirtualMachine(moref, self._service._stub)
        with contextlib.suppress(vim.fault.InvalidPowerState, vmodl.fault.ManagedObjectNotFound):
            await self._in_thread(machine.PowerOffVM_Task)

    async def _in_thread(self, action: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, action, *arguments)

    async def _read(self, spec: Any) -> dict[str, dict[str, Any]]:
        def read() -> dict[str, dict[str, Any]]:
            retrieve = self._content.propertyCollector.RetrievePropertiesEx
            page = retrieve([self._filter_spec([spec])], _Collector.RetrieveOptions())
            return {
                one.obj._moId: {item.name: item.val for item in one.propSet or ()}
                for one in (page.objects if page is not None else ())
            }

        return await self._in_thread(read)

    def _filter_spec(self, specs: list[Any]) -> Any:
        into = _Collector.TraversalSpec(type=vim.view.ContainerView, path="view", skip=False)
        return _Collector.FilterSpec(
            propSet=specs, objectSet=[_Collector.ObjectSpec(obj=self._view, skip=True, selectSet=[into])]
        )
