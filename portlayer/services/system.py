"""SystemService: the virtual container host itself."""

from __future__ import annotations

import asyncio
import contextlib
import platform
import time
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from typing import Any

import grpc

from portlayer.config import Settings
from portlayer.drivers.base import MachineDriver
from portlayer.errors import ConflictError
from portlayer.execution import Manager, states
from portlayer.identity import Identity
from portlayer.instantclone import InstantClones
from portlayer.metrics import Metrics
from portlayer.services.status import grpc_errors
from portlayer.v1 import system_pb2 as pb
from portlayer.v1 import system_pb2_grpc

DISTRIBUTION = "virtual-container-host"

Context = grpc.aio.ServicerContext[Any, Any]


class SystemServicer(system_pb2_grpc.SystemServiceServicer):
    """See proto/portlayer/v1/system.proto."""

    def __init__(
        self,
        identity: Identity,
        settings: Settings,
        driver: MachineDriver,
        manager: Manager,
        clones: InstantClones,
        metrics: Metrics,
        image_count: Callable[[], int],
    ) -> None:
        self._identity = identity
        self._settings = settings
        self._driver = driver
        self._manager = manager
        self._clones = clones
        self._metrics = metrics
        self._image_count = image_count
        self._started_ns = time.time_ns()

    async def GetInfo(
        self, request: pb.GetInfoRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetInfoResponse:
        async with grpc_errors(context):
            status = dict(await self._driver.info())
            capacity = await self._driver.capacity()
            kinds = Counter(_kind(one.state.status) for one in self._manager.containers())
            return pb.GetInfoResponse(
                id=self._identity.id,
                name=self._identity.name,
                version=version(),
                driver=self._driver.name,
                driver_status=status,
                containers=sum(kinds.values()),
                containers_running=kinds["running"],
                containers_paused=kinds["paused"],
                containers_stopped=kinds["stopped"],
                images=self._image_count(),
                cpus=capacity.cpus,
                memory_bytes=capacity.memory_bytes,
                kernel_version=status.get("Guest kernel", ""),
                architecture=platform.machine(),
                operating_system=await asyncio.to_thread(_operating_system),
                state_dir=str(self._settings.state_dir),
                default_memory_bytes=self._settings.default_memory_bytes,
                default_cpus=self._settings.default_cpus,
                warnings=_warnings(self._driver, status),
                started_unix_ns=self._started_ns,
            )

    async def ListTemplates(self, request: pb.ListTemplatesRequest, context: Context) -> pb.ListTemplatesResponse:
        async with grpc_errors(context):
            return pb.ListTemplatesResponse(templates=self._templates())

    async def GetMetrics(self, request: pb.GetMetricsRequest, context: Context) -> pb.GetMetricsResponse:
        async with grpc_errors(context):
            statuses = [one.state.status for one in self._manager.containers()]
            return pb.GetMetricsResponse(text=self._metrics.render(statuses, self._templates()))

    async def Dismantle(self, request: pb.DismantleRequest, context: Context) -> pb.DismantleResponse:
        async with grpc_errors(context):
            if self._manager.containers():
                raise ConflictError("there are containers: remove them first")
            await self._clones.close()
            return pb.DismantleResponse(stays=await self._driver.dismantle())

    def _templates(self) -> list[pb.Template]:
        return self._clones.describe(self._manager.clones_by_template())


def version() -> str:
    """Version of the installed package."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(DISTRIBUTION)
    return "unknown"


def _kind(status: states.Status.ValueType) -> str:
    if status == states.PAUSED:
        return "paused"
    return "running" if status in states.ACTIVE else "stopped"


def _operating_system() -> str:
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    return "Linux"


def _warnings(driver: MachineDriver, status: dict[str, str]) -> list[str]:
    if driver.networks:
        warnings = ["WARNING: containers have network cards, but nothing gives these addresses yet"]
    else:
        warnings = ["WARNING: containers have no network yet, loopback only"]
    if status.get("Accelerator") == "tcg":
        warnings.append(f"WARNING: software emulation, slow: {status.get('Accelerator reason', 'no KVM')}")
    return warnings
