"""Stand-ins for the guests of all VMs: for each VM that is powered on, an agent dials the concentrator as ESXi would.

The agents speak the real protocol and run fake programs (fake_agent.py), so a start through the driver ends with a
container that runs. What is on comes from the simulator's events, which cost the same however many VMs there are.
"""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from fake_agent import FakeAgent
from pyVmomi import vim, vmodl
from vsphere_esxi_port import EsxiPort, Refused

_LOOK_S = 0.02
_REDIAL_S = 0.2
_EVENTS = 1000
_ON, _OFF = (vim.event.VmPoweredOnEvent,), (vim.event.VmPoweredOffEvent, vim.event.VmRemovedEvent)
_UUID, _DEVICES = "config.instanceUuid", "config.hardware.device"


class Guests:
    """Works while its context lasts. `content` is of a session of its own."""

    def __init__(self, content: Any) -> None:
        self._content = content
        self._guests: dict[str, asyncio.Task[None]] = {}
        self._threads = ThreadPoolExecutor(4, "guests")

    async def serve(self) -> None:
        """Until it is cancelled."""
        kinds = [kind.__name__.rpartition(".")[2] for kind in (*_ON, *_OFF)]
        spec = vim.event.EventFilterSpec(eventTypeId=kinds)
        collector = await self._call(self._content.eventManager.CreateCollectorForEvents, spec)
        try:
            while True:
                for event in await self._call(collector.ReadNextEvents, _EVENTS):
                    if event.vm is not None:
                        self._heard(event)
                await asyncio.sleep(_LOOK_S)
        finally:
            for guest in self._guests.values():
                guest.cancel()
            await asyncio.gather(*self._guests.values(), return_exceptions=True)
            self._threads.shutdown()

    def _heard(self, event: Any) -> None:
        vm = event.vm.vm
        if isinstance(event, _OFF) and (guest := self._guests.pop(vm._moId, None)) is not None:
            guest.cancel()
        elif isinstance(event, _ON) and vm._moId not in self._guests:
            self._guests[vm._moId] = asyncio.create_task(self._run(vm))

    async def _run(self, vm: Any) -> None:
        """From power-on to power-off; the line is dialled again when it breaks."""
        agent = FakeAgent(lambda: self._threads.submit(_power_off, vm))
        try:
            found = await self._call(self._read, vm)
            port = next(one for one in found[_DEVICES] if getattr(one.backing, "proxyURI", None))
            to = urlsplit(port.backing.proxyURI)
            while True:
                call = EsxiPort(to.hostname, to.port, port.backing.serviceURI, found[_UUID], "stand-in")
                with contextlib.suppress(OSError, Refused):
                    await call.open()
                    await agent.serve(_Line(call), _Line(call))
                with contextlib.suppress(OSError, AttributeError):
                    await call.close()
                await asyncio.sleep(_REDIAL_S)
        finally:
            await agent.end()

    def _read(self, vm: Any) -> dict[str, Any]:
        collector = vmodl.query.PropertyCollector
        spec = collector.FilterSpec(
            propSet=[collector.PropertySpec(type=vim.VirtualMachine, pathSet=[_UUID, _DEVICES])],
            objectSet=[collector.ObjectSpec(obj=vm)],
        )
        found = self._content.propertyCollector.RetrievePropertiesEx([spec], collector.RetrieveOptions())
        return {item.name: item.val for item in found.objects[0].propSet}

    async def _call(self, method: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, method, *args)


class _Line:
    """A port as the streams that an agent is served with."""

    def __init__(self, port: EsxiPort) -> None:
        self._port = port

    async def read(self, _: int) -> bytes:
        return await self._port.read()

    def write(self, data: bytes) -> None:
        self._port.write(data)

    def close(self) -> None:
        """The port is its owner's to close."""


def _power_off(vm: Any) -> None:
    with contextlib.suppress(vmodl.MethodFault):
        vm.PowerOffVM_Task()
