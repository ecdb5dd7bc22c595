"""A port layer on the fake hypervisor; every fixture asserts that nothing was left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fake_driver import CAPACITY, FakeDriver
from patience import PATIENCE_S

from portlayer.drivers.base import Cloning
from portlayer.errors import NotFoundError
from portlayer.events import EventHub
from portlayer.execution import Container, Manager
from portlayer.instantclone import InstantClones
from portlayer.metrics import Metrics
from portlayer.networks import Networks
from portlayer.storage.image_config import HealthCheck
from portlayer.v1 import types_pb2


@dataclass
class FakeConfig:
    entrypoint: list[str] = field(default_factory=list)
    cmd: list[str] = field(default_factory=lambda: ["stubborn"])
    env: list[str] = field(default_factory=lambda: ["PATH=/bin", "A=image"])
    working_dir: str = ""
    user: str = ""
    stop_signal: str = ""
    labels: dict[str, str] = field(default_factory=lambda: {"from": "image"})
    health_check: HealthCheck = field(default_factory=HealthCheck)


@dataclass
class FakeImage:
    id: str = "sha256:" + "1" * 64
    config: FakeConfig = field(default_factory=FakeConfig)


class FakeImages:
    def get(self, name: str) -> FakeImage:
        if name != "box":
            raise NotFoundError(f"No such image: {name}")
        return FakeImage()

    async def ensure_disk(self, image: FakeImage) -> str:
        return "disk"


class Host:
    """What outlives a port layer: the hypervisor and the state directory."""

    def __init__(
        self, root: Path, *, cloning: Cloning | None = None, pool_size: int = 0, pool_memory_bytes: int = 0
    ) -> None:
        self.root = root
        self.driver = FakeDriver(root / "machines")
        self.driver.cloning = cloning
        self.events = EventHub(root / "events.jsonl")
        self.clones = InstantClones(cloning, (1 << 30, 1), pool_size, pool_memory_bytes, self.events.emit)
        self.metrics = Metrics()
        self.manager = self._manager()

    def _manager(self) -> Manager:
        return Manager(
            self.driver,
            FakeImages(),
            self.events,
            self.clones,
            networks=Networks("vch", self.driver.name, self.driver.networks),
            default_memory_bytes=1 << 30,
            default_cpus=1,
            default_disk_bytes=1 << 30,
            capacity=CAPACITY,
            metrics=self.metrics,
        )

    async def restart(self) -> Manager:
        """The port layer ends and another begins; machines go on."""
        await self.manager.close()
        self.manager = self._manager()
        await self.manager.open()
        return self.manager

    async def create(self, *args: str, name: str = "", **spec: object) -> Container:
        process = {key: spec.pop(key) for key in ("open_stdin", "stdin_once", "terminal") if key in spec}
        config = types_pb2.ProcessConfig(cmd=args, **process)  # type: ignore[arg-type]
        whole = types_pb2.ContainerSpec(image="box", process=config, **spec)  # type: ignore[arg-type]
        return await self.manager.create("", name, whole)

    def actions(self) -> list[str]:
        """Actions of the events so far."""
        return [event.action.partition(":")[0] for event in self.events._history(0, 0)]


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    host = Host(tmp_path)
    await host.manager.open()
    before = asyncio.all_tasks()
    yield host
    await host.manager.close()
    await host.driver.power_off_all()
    async with asyncio.timeout(PATIENCE_S):
        while leaked := asyncio.all_tasks() - before - {asyncio.current_task()}:
            await asyncio.wait(leaked)
