"""What the fake port layer has and does, whichever service is asked; see fake_portlayer."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import json
import time
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from fake_process import FakeProcess, Script
from google.protobuf import any_pb2
from google.rpc import status_pb2

from portlayer.v1 import events_pb2, execution_pb2, network_pb2, system_pb2, types_pb2

RUNNING = {
    types_pb2.CONTAINER_STATUS_STARTING,
    types_pb2.CONTAINER_STATUS_RUNNING,
    types_pb2.CONTAINER_STATUS_PAUSED,
    types_pb2.CONTAINER_STATUS_STOPPING,
}

# Nothing here takes a second; on a machine that is busy with other things it may take far more.
PATIENCE_S = 120.0

_CODE_NUMBERS = {code: code.value[0] for code in grpc.StatusCode}


@dataclass
class _Failure:
    code: grpc.StatusCode
    message: str
    launch_failed: execution_pb2.LaunchFailed | None = None


def make_network(name: str, driver: str, description: str = "") -> network_pb2.Network:
    network_id = hashlib.sha256(f"network {name}".encode()).hexdigest()
    created = 1_700_000_000 * 10**9
    return network_pb2.Network(
        id=network_id, name=name, driver=driver, created_unix_ns=created, description=description
    )


@dataclass
class FakeState:
    """The state behind all services, for tests to arrange and look at."""

    containers: dict[str, types_pb2.Container] = field(default_factory=dict)
    processes: dict[str, FakeProcess] = field(default_factory=dict)
    execs: dict[str, execution_pb2.Exec] = field(default_factory=dict)
    exec_processes: dict[str, FakeProcess] = field(default_factory=dict)
    images: dict[str, types_pb2.Image] = field(default_factory=dict)
    scripts: dict[str, Script] = field(default_factory=lambda: {"*": Script()})
    events: list[events_pb2.Event] = field(default_factory=list)
    calls: list[tuple[str, Any]] = field(default_factory=list)
    blocked: set[str] = field(default_factory=set)
    entered: asyncio.Condition = field(default_factory=asyncio.Condition)
    cancelled: list[str] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    archive: bytes = b"the archive"
    failures: dict[str, _Failure] = field(default_factory=dict)
    sizes: list[tuple[str, int, int]] = field(default_factory=list)
    templates: list[system_pb2.Template] = field(default_factory=list)
    metrics: str = ""
    networks: list[network_pb2.Network] = field(default_factory=lambda: [make_network("none", "null")])
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    counter: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    # For tests.

    def fail(
        self,
        method: str,
        code: grpc.StatusCode,
        message: str,
        launch_failed: execution_pb2.LaunchFailed | None = None,
    ) -> None:
        """Every later call of `method` ends so."""
        self.failures[method] = _Failure(code, message, launch_failed)

    def add_image(self, *tags: str, config: dict[str, Any] | None = None, created_s: int = 1_700_000_000) -> str:
        """Stores an image and returns its id."""
        seed = f"image {next(self.counter)}".encode()
        image_id = "sha256:" + hashlib.sha256(seed).hexdigest()
        running = {"Cmd": ["sh"], "Env": ["PATH=/bin"]} if config is None else config
        document = {"architecture": "amd64", "os": "linux", "config": running, "rootfs": {"type": "layers"}}
        self.images[image_id] = types_pb2.Image(
            id=image_id,
            tags=tags,
            created_unix_ns=created_s * 1_000_000_000 + 5,
            size_bytes=4_000_000,
            architecture="amd64",
            os="linux",
            config_json=json.dumps(document).encode(),
            diff_ids=["sha256:" + "d" * 64],
            manifest_digest="sha256:" + "e" * 64,
        )
        return image_id

    def find(self, key: str) -> types_pb2.Container | None:
        """A container by id, name or unique prefix of the id."""
        if key in self.containers:
            return self.containers[key]
        named = [each for each in self.containers.values() if each.name == key]
        matches = named or [each for identity, each in self.containers.items() if key and identity.startswith(key)]
        return matches[0] if len(matches) == 1 else None

    def request(self, method: str) -> Any:
        """The last request of `method`."""
        return [request for name, request in self.calls if name == method][-1]

    async def until_called(self, method: str, times: int = 1) -> None:
        """Waits until `method` has been called."""
        async with asyncio.timeout(PATIENCE_S), self.entered:
            await self.entered.wait_for(lambda: sum(name == method for name, _ in self.calls) >= times)

    async def until_cancelled(self, method: str) -> None:
        """Waits until a call of `method` has been cancelled by the personality."""
        async with asyncio.timeout(PATIENCE_S), self.entered:
            await self.entered.wait_for(lambda: method in self.cancelled)

    async def emit(self, kind: str, action: str, actor: str, **attributes: str) -> None:
        """Records an event and sends it to whoever listens."""
        async with self.changed:
            self.events.append(
                events_pb2.Event(
                    time_unix_ns=time.time_ns(), type=kind, action=action, actor_id=actor, attributes=attributes
                )
            )
            self.changed.notify_all()

    # For the services.

    async def enter(self, method: str, request: Any, context: Any) -> None:
        """Records the call; ends it when it is meant to fail, and holds it when it is meant to block."""
        context.add_done_callback(functools.partial(self._ended, method))
        async with self.entered:
            self.calls.append((method, request))
            self.entered.notify_all()
        if method in self.failures:
            await self._abort(self.failures[method], context)
        await self.hold(method)

    async def hold(self, name: str) -> None:
        """Has a call that is meant to block wait for its end."""
        if name in self.blocked:
            await asyncio.Event().wait()

    def _ended(self, method: str, context: Any) -> None:
        """Notes a call that was cancelled: in its handler or while sending, it ended without a status of its own."""
        if not context.done():
            self.cancelled.append(method)
            self.spawn(self._notify_entered())

    async def _abort(self, failure: _Failure, context: Any) -> None:
        metadata: tuple[tuple[str, bytes], ...] = ()
        if failure.launch_failed is not None:
            detail = any_pb2.Any()
            detail.Pack(failure.launch_failed)
            status = status_pb2.Status(code=_CODE_NUMBERS[failure.code], message=failure.message, details=[detail])
            metadata = (("grpc-status-details-bin", status.SerializeToString()),)
        await context.abort(failure.code, failure.message, metadata)

    async def _notify_entered(self) -> None:
        async with self.entered:
            self.entered.notify_all()

    async def container(self, key: str, context: Any) -> types_pb2.Container:
        container = self.find(key)
        if container is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"No such container: {key}")
        assert container is not None
        return container

    async def network(self, key: str, context: Any) -> network_pb2.Network:
        for network in self.networks:
            if key in {network.name, network.id}:
                return network
        await context.abort(grpc.StatusCode.NOT_FOUND, f"network {key} not found")
        raise AssertionError

    async def running(self, key: str, context: Any) -> types_pb2.Container:
        container = await self.container(key, context)
        if container.state.status not in RUNNING:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"container {container.id} is not running")
        return container

    def image(self, name: str) -> types_pb2.Image | None:
        wanted = {name, f"{name}:latest"}
        for image in self.images.values():
            if image.id == name or wanted & set(image.tags) or image.id.removeprefix("sha256:").startswith(name):
                return image
        return None

    def spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def start(self, container: types_pb2.Container) -> None:
        container.state.status = types_pb2.CONTAINER_STATUS_RUNNING
        container.state.pid = 42
        container.state.exit_code = 0
        container.state.started_unix_ns = time.time_ns()
        process = FakeProcess(self.scripts.get(container.name, self.scripts["*"]))
        self.processes[container.id] = process
        await self.emit("container", "start", container.id, name=container.name, image=container.spec.image)
        self.spawn(self._watch(container, process))
        self.spawn(process.run())

    async def _watch(self, container: types_pb2.Container, process: FakeProcess) -> None:
        exit_code = await process.ended()
        container.state.status = types_pb2.CONTAINER_STATUS_EXITED
        container.state.pid = 0
        container.state.exit_code = exit_code
        container.state.finished_unix_ns = time.time_ns()
        attributes = {"name": container.name, "image": container.spec.image, "exitCode": str(exit_code)}
        await self.emit("container", "die", container.id, **attributes)
        if container.spec.auto_remove:
            await self.remove(container)

    async def remove(self, container: types_pb2.Container) -> None:
        self.containers.pop(container.id, None)
        await self.emit("container", "destroy", container.id, name=container.name, image=container.spec.image)
