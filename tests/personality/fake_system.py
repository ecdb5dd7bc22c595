"""The fake port layer's networks, events and figures about itself."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from fake_state import RUNNING, FakeState

from portlayer.v1 import events_pb2, events_pb2_grpc, network_pb2, network_pb2_grpc, system_pb2, system_pb2_grpc


class Network(network_pb2_grpc.NetworkServiceServicer):
    def __init__(self, fake: FakeState) -> None:
        self._fake = fake

    async def ListNetworks(self, request: Any, context: Any) -> Any:
        await self._fake.enter("ListNetworks", request, context)
        return network_pb2.ListNetworksResponse(networks=self._fake.networks)

    async def GetNetwork(self, request: Any, context: Any) -> Any:
        await self._fake.enter("GetNetwork", request, context)
        return network_pb2.GetNetworkResponse(network=await self._fake.network(request.network, context))


class Events(events_pb2_grpc.EventsServiceServicer):
    def __init__(self, fake: FakeState) -> None:
        self._fake = fake

    async def StreamEvents(self, request: Any, context: Any) -> AsyncIterator[Any]:
        fake = self._fake
        await fake.enter("StreamEvents", request, context)
        position = 0 if request.since_unix_ns else len(fake.events)
        yield events_pb2.StreamEventsResponse()
        while True:
            for event in fake.events[position:]:
                if event.time_unix_ns >= request.since_unix_ns and not (
                    request.until_unix_ns and event.time_unix_ns > request.until_unix_ns
                ):
                    yield events_pb2.StreamEventsResponse(event=event)
            position = len(fake.events)
            if request.until_unix_ns and request.until_unix_ns <= time.time_ns():
                return
            left = (request.until_unix_ns - time.time_ns()) / 1e9 if request.until_unix_ns else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left), fake.changed:
                    await fake.changed.wait_for(lambda seen=position: len(fake.events) > seen)  # type: ignore[misc]


class System(system_pb2_grpc.SystemServiceServicer):
    def __init__(self, fake: FakeState) -> None:
        self._fake = fake

    async def GetInfo(self, request: Any, context: Any) -> Any:
        await self._fake.enter("GetInfo", request, context)
        states = [each.state.status for each in self._fake.containers.values()]
        running = sum(status in RUNNING for status in states)
        return system_pb2.GetInfoResponse(
            id="11111111-2222-3333-4444-555555555555",
            name="vch-test",
            version="0.1.0",
            driver="qemu",
            driver_status={"Accelerator": "tcg", "QEMU": "7.2"},
            containers=len(states),
            containers_running=running,
            containers_stopped=len(states) - running,
            images=len(self._fake.images),
            cpus=4,
            memory_bytes=8 << 30,
            kernel_version="6.1.0",
            architecture="x86_64",
            operating_system="Debian GNU/Linux 12 (bookworm)",
            state_dir="/var/lib/vch",
            default_memory_bytes=512 << 20,
            default_cpus=1,
            warnings=["WARNING: no KVM"],
            started_unix_ns=time.time_ns(),
        )

    async def ListTemplates(self, request: Any, context: Any) -> Any:
        await self._fake.enter("ListTemplates", request, context)
        return system_pb2.ListTemplatesResponse(templates=self._fake.templates)

    async def GetMetrics(self, request: Any, context: Any) -> Any:
        await self._fake.enter("GetMetrics", request, context)
        return system_pb2.GetMetricsResponse(text=self._fake.metrics)
