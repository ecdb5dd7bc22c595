"""A port layer in memory: real gRPC on a Unix socket, containers whose programs are scripts.

    async with FakePortLayer.serving(path) as fake:
        fake.add_image("busybox:latest")
        fake.scripts["web"] = Script(stdout=b"hello\n", exit_code=3)   # by the container's name, or "*"
        fake.fail("StartContainer", grpc.StatusCode.ABORTED, "...", launch_failed=LaunchFailed(exit_code=127))

Every call is recorded in `calls`. `blocked` holds method names whose calls never answer; `cancelled` the names of calls
that ended by cancellation.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc.aio
from google.protobuf import any_pb2
from google.rpc import status_pb2

from portlayer.v1 import (
    events_pb2,
    events_pb2_grpc,
    execution_pb2,
    execution_pb2_grpc,
    interaction_pb2,
    interaction_pb2_grpc,
    network_pb2,
    network_pb2_grpc,
    storage_pb2,
    storage_pb2_grpc,
    system_pb2,
    system_pb2_grpc,
    types_pb2,
)

STDOUT = types_pb2.OUTPUT_STREAM_STDOUT
STDERR = types_pb2.OUTPUT_STREAM_STDERR

_RUNNING = {
    types_pb2.CONTAINER_STATUS_STARTING,
    types_pb2.CONTAINER_STATUS_RUNNING,
    types_pb2.CONTAINER_STATUS_PAUSED,
    types_pb2.CONTAINER_STATUS_STOPPING,
}

_CODE_NUMBERS = {code: code.value[0] for code in grpc.StatusCode}


@dataclass
class Script:
    """What a program does: waits, writes, then (echo) gives stdin back to its end, or (forever) awaits a signal."""

    stdout: bytes = b""
    stderr: bytes = b""
    exit_code: int = 0
    delay_s: float = 0
    echo: bool = False
    forever: bool = False


class FakeProcess:
    """A running script; any number of readers follow its output from the beginning or from now."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.chunks: list[interaction_pb2.OutputChunk] = []
        self.stdin = bytearray()
        self.stdin_closed = False
        self.exit_code: int | None = None
        self.changed = asyncio.Condition()

    async def run(self) -> None:
        await asyncio.sleep(self.script.delay_s)
        if self.script.stdout:
            await self.emit(STDOUT, self.script.stdout)
        if self.script.stderr:
            await self.emit(STDERR, self.script.stderr)
        if not self.script.echo and not self.script.forever:
            await self.end(self.script.exit_code)

    async def emit(self, stream: types_pb2.OutputStream, data: bytes) -> None:
        async with self.changed:
            self.chunks.append(interaction_pb2.OutputChunk(stream=stream, data=data))
            self.changed.notify_all()

    async def feed(self, data: bytes) -> None:
        self.stdin += data
        if self.script.echo:
            await self.emit(STDOUT, data)

    async def close_stdin(self) -> None:
        async with self.changed:
            self.stdin_closed = True
            self.changed.notify_all()
        if self.script.echo:
            await self.end(self.script.exit_code)

    async def end(self, exit_code: int) -> None:
        async with self.changed:
            if self.exit_code is None:
                self.exit_code = exit_code
            self.changed.notify_all()

    async def ended(self) -> int:
        async with self.changed:
            await self.changed.wait_for(lambda: self.exit_code is not None)
        assert self.exit_code is not None
        return self.exit_code

    async def leave(self, left: asyncio.Event) -> None:
        async with self.changed:
            left.set()
            self.changed.notify_all()

    async def follow(
        self, start: int = 0, left: asyncio.Event | None = None
    ) -> AsyncIterator[interaction_pb2.OutputChunk]:
        """Up to its end, or until this reader has left."""
        position, left = start, left or asyncio.Event()
        while True:
            async with self.changed:
                while position >= len(self.chunks) and self.exit_code is None and not left.is_set():
                    await self.changed.wait()
            if position >= len(self.chunks) or left.is_set():
                return
            while position < len(self.chunks):
                yield self.chunks[position]
                position += 1


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
class FakePortLayer:
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

    @classmethod
    @contextlib.asynccontextmanager
    async def serving(cls, path: Path) -> AsyncIterator[Self]:
        """Serves at unix://`path`."""
        fake = cls()
        server = grpc.aio.server()
        execution_pb2_grpc.add_ExecutionServiceServicer_to_server(_Execution(fake), server)
        interaction_pb2_grpc.add_InteractionServiceServicer_to_server(_Interaction(fake), server)
        storage_pb2_grpc.add_StorageServiceServicer_to_server(_Storage(fake), server)
        network_pb2_grpc.add_NetworkServiceServicer_to_server(_Network(fake), server)
        events_pb2_grpc.add_EventsServiceServicer_to_server(_Events(fake), server)
        system_pb2_grpc.add_SystemServiceServicer_to_server(_System(fake), server)
        server.add_insecure_port(f"unix://{path}")
        await server.start()
        try:
            yield fake
        finally:
            for task in fake.tasks:
                task.cancel()
            await server.stop(None)

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
        async with self.entered:
            await self.entered.wait_for(lambda: sum(name == method for name, _ in self.calls) >= times)

    async def until_cancelled(self, method: str) -> None:
        """Waits until a call of `method` has been cancelled by the personality."""
        async with self.entered:
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
        async with self.entered:
            self.calls.append((method, request))
            self.entered.notify_all()
        if method in self.failures:
            await self._abort(self.failures[method], context)
        if method in self.blocked:
            async with self.watching(method):
                await asyncio.Event().wait()

    async def _abort(self, failure: _Failure, context: Any) -> None:
        metadata: tuple[tuple[str, bytes], ...] = ()
        if failure.launch_failed is not None:
            detail = any_pb2.Any()
            detail.Pack(failure.launch_failed)
            status = status_pb2.Status(code=_CODE_NUMBERS[failure.code], message=failure.message, details=[detail])
            metadata = (("grpc-status-details-bin", status.SerializeToString()),)
        await context.abort(failure.code, failure.message, metadata)

    @contextlib.asynccontextmanager
    async def watching(self, method: str) -> AsyncIterator[None]:
        """Notes when the call is cancelled within."""
        try:
            yield
        except asyncio.CancelledError:
            self.cancelled.append(method)
            self.spawn(self._notify_entered())
            raise

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
        if container.state.status not in _RUNNING:
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


class _Execution(execution_pb2_grpc.ExecutionServiceServicer):
    def __init__(self, fake: FakePortLayer) -> None:
        self._fake = fake

    async def CreateContainer(self, request: Any, context: Any) -> Any:
        fake = self._fake
        await fake.enter("CreateContainer", request, context)
        image = fake.image(request.spec.image)
        if image is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"No such image: {request.spec.image}")
        assert image is not None
        if request.name and any(each.name == request.name for each in fake.containers.values()):
            await context.abort(
                grpc.StatusCode.ALREADY_EXISTS,
                f'Conflict. The container name "/{request.name}" is already in use.',
            )
        names = list(request.spec.networks) or [network.name for network in fake.networks if network.name == "bridge"]
        endpoints = [
            types_pb2.NetworkEndpoint(network=network.name, network_id=network.id)
            for network in [await fake.network(name, context) for name in names or ["none"]]
        ]
        number = next(fake.counter)
        container = types_pb2.Container(
            id=hashlib.sha256(f"container {number}".encode()).hexdigest(),
            name=request.name or f"quiet_fox_{number}",
            image_id=image.id,
            spec=request.spec,
            machine="fake:machine",
            endpoints=endpoints,
        )
        _fill(container.spec, image)
        container.state.status = types_pb2.CONTAINER_STATUS_CREATED
        container.state.created_unix_ns = time.time_ns()
        if not container.spec.hostname:
            container.spec.hostname = container.id[:12]
        fake.containers[container.id] = container
        await fake.emit("container", "create", container.id, name=container.name, image=container.spec.image)
        return execution_pb2.CreateContainerResponse(container=container)

    async def StartContainer(self, request: Any, context: Any) -> Any:
        await self._fake.enter("StartContainer", request, context)
        container = await self._fake.container(request.container, context)
        already = container.state.status in _RUNNING
        if not already:
            await self._fake.start(container)
        return execution_pb2.StartContainerResponse(already_running=already, container=container)

    async def StopContainer(self, request: Any, context: Any) -> Any:
        await self._fake.enter("StopContainer", request, context)
        container = await self._fake.container(request.container, context)
        was_running = container.state.status in _RUNNING
        if was_running:
            await self._end(container, 143)
        return execution_pb2.StopContainerResponse(was_running=was_running)

    async def _end(self, container: types_pb2.Container, exit_code: int) -> None:
        await self._fake.processes[container.id].end(exit_code)
        async with self._fake.changed:
            await self._fake.changed.wait_for(lambda: container.state.status not in _RUNNING)

    async def KillContainer(self, request: Any, context: Any) -> Any:
        await self._fake.enter("KillContainer", request, context)
        container = await self._fake.running(request.container, context)
        await self._end(container, 128 + (request.signal or 9))
        return execution_pb2.KillContainerResponse()

    async def RestartContainer(self, request: Any, context: Any) -> Any:
        await self._fake.enter("RestartContainer", request, context)
        container = await self._fake.container(request.container, context)
        if container.state.status in _RUNNING:
            await self._end(container, 143)
        await self._fake.start(container)
        return execution_pb2.RestartContainerResponse()

    async def PauseContainer(self, request: Any, context: Any) -> Any:
        await self._fake.enter("PauseContainer", request, context)
        container = await self._fake.running(request.container, context)
        container.state.status = types_pb2.CONTAINER_STATUS_PAUSED
        return execution_pb2.PauseContainerResponse()

    async def UnpauseContainer(self, request: Any, context: Any) -> Any:
        await self._fake.enter("UnpauseContainer", request, context)
        container = await self._fake.running(request.container, context)
        container.state.status = types_pb2.CONTAINER_STATUS_RUNNING
        return execution_pb2.UnpauseContainerResponse()

    async def RenameContainer(self, request: Any, context: Any) -> Any:
        await self._fake.enter("RenameContainer", request, context)
        container = await self._fake.container(request.container, context)
        container.name = request.new_name
        return execution_pb2.RenameContainerResponse()

    async def UpdateContainer(self, request: Any, context: Any) -> Any:
        await self._fake.enter("UpdateContainer", request, context)
        container = await self._fake.container(request.container, context)
        if request.HasField("restart"):
            container.spec.restart.CopyFrom(request.restart)
        return execution_pb2.UpdateContainerResponse()

    async def RemoveContainer(self, request: Any, context: Any) -> Any:
        await self._fake.enter("RemoveContainer", request, context)
        container = await self._fake.container(request.container, context)
        if container.state.status in _RUNNING:
            if not request.force:
                await context.abort(
                    grpc.StatusCode.FAILED_PRECONDITION, f"cannot remove container: {container.id} is running"
                )
            await self._end(container, 137)
        await self._fake.remove(container)
        return execution_pb2.RemoveContainerResponse()

    async def GetContainer(self, request: Any, context: Any) -> Any:
        await self._fake.enter("GetContainer", request, context)
        container = await self._fake.container(request.container, context)
        size = 12_345 if request.size else 0
        return execution_pb2.GetContainerResponse(container=container, size_rw_bytes=size)

    async def ListContainers(self, request: Any, context: Any) -> Any:
        await self._fake.enter("ListContainers", request, context)
        containers = [
            each for each in self._fake.containers.values() if not request.running_only or each.state.status in _RUNNING
        ]
        return execution_pb2.ListContainersResponse(containers=containers)

    async def WaitContainer(self, request: Any, context: Any) -> AsyncIterator[Any]:
        fake = self._fake
        await fake.enter("WaitContainer", request, context)
        container = await fake.container(request.container, context)
        condition = request.condition
        removed = condition == execution_pb2.WaitContainerRequest.CONDITION_REMOVED
        next_exit = condition == execution_pb2.WaitContainerRequest.CONDITION_NEXT_EXIT
        runs = container.state.finished_unix_ns

        def holds() -> bool:
            if removed:
                return container.id not in fake.containers
            if next_exit:
                return container.state.finished_unix_ns != runs
            return container.state.status not in _RUNNING

        yield execution_pb2.WaitContainerResponse(armed=True)
        async with fake.watching("WaitContainer"), fake.changed:
            await fake.changed.wait_for(holds)
        yield execution_pb2.WaitContainerResponse(exit_code=container.state.exit_code)

    async def ResizeContainer(self, request: Any, context: Any) -> Any:
        await self._fake.enter("ResizeContainer", request, context)
        await self._fake.running(request.container, context)
        self._fake.sizes.append((request.container, request.rows, request.columns))
        return execution_pb2.ResizeContainerResponse()

    async def ListProcesses(self, request: Any, context: Any) -> Any:
        await self._fake.enter("ListProcesses", request, context)
        await self._fake.running(request.container, context)
        process = execution_pb2.ProcessInfo(
            pid=42,
            parent_pid=1,
            user="root",
            started_unix_ns=time.time_ns(),
            cpu_ns=1_500_000_000,
            state="S",
            name="sh",
            args=["sh", "-c", "sleep 1"],
            resident_bytes=1 << 20,
            virtual_bytes=4 << 20,
            threads=1,
        )
        return execution_pb2.ListProcessesResponse(processes=[process])

    async def StreamStats(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._fake.enter("StreamStats", request, context)
        await self._fake.container(request.container, context)
        for number in itertools.count(1):
            yield execution_pb2.StreamStatsResponse(
                time_unix_ns=time.time_ns(),
                cpu_total_ns=number * 1_000_000,
                cpu_user_ns=number * 600_000,
                cpu_system_ns=number * 400_000,
                system_cpu_ns=number * 2_000_000_000,
                online_cpus=2,
                memory_usage_bytes=10 << 20,
                memory_limit_bytes=128 << 20,
                memory_stat={"inactive_file": 4096},
                pids=1,
                networks=[execution_pb2.NetworkStats(interface="eth0", received_bytes=number, sent_bytes=2 * number)],
            )
            if request.one_shot:
                return
            async with self._fake.watching("StreamStats"):
                await asyncio.sleep(0.02)

    async def CreateExec(self, request: Any, context: Any) -> Any:
        await self._fake.enter("CreateExec", request, context)
        container = await self._fake.running(request.container, context)
        identity = hashlib.sha256(f"exec {next(self._fake.counter)}".encode()).hexdigest()
        self._fake.execs[identity] = execution_pb2.Exec(id=identity, container_id=container.id, spec=request.spec)
        container.exec_ids.append(identity)
        return execution_pb2.CreateExecResponse(exec_id=identity)

    async def StartExec(self, request: Any, context: Any) -> Any:
        await self._fake.enter("StartExec", request, context)
        await start_exec(self._fake, request.exec_id, context)
        return execution_pb2.StartExecResponse()

    async def GetExec(self, request: Any, context: Any) -> Any:
        await self._fake.enter("GetExec", request, context)
        return execution_pb2.GetExecResponse(exec=await _exec(self._fake, request.exec_id, context))

    async def ResizeExec(self, request: Any, context: Any) -> Any:
        await self._fake.enter("ResizeExec", request, context)
        await _exec(self._fake, request.exec_id, context)
        self._fake.sizes.append((request.exec_id, request.rows, request.columns))
        return execution_pb2.ResizeExecResponse()


def _fill(spec: types_pb2.ContainerSpec, image: types_pb2.Image) -> None:
    """What the image gives, as the port layer does it."""
    running = json.loads(image.config_json).get("config", {})
    process = spec.process
    if not process.entrypoint and not process.entrypoint_set:
        process.entrypoint.extend(running.get("Entrypoint") or [])
        if not process.cmd:
            process.cmd.extend(running.get("Cmd") or [])
    own = list(process.env)
    names = {each.partition("=")[0] for each in own}
    del process.env[:]
    process.env.extend(each for each in running.get("Env") or [] if each.partition("=")[0] not in names)
    process.env.extend(own)
    for key, value in (running.get("Labels") or {}).items():
        if key not in spec.labels:
            spec.labels[key] = value


async def _exec(fake: FakePortLayer, identity: str, context: Any) -> execution_pb2.Exec:
    if identity not in fake.execs:
        await context.abort(grpc.StatusCode.NOT_FOUND, f"No such exec instance: {identity}")
    return fake.execs[identity]


async def start_exec(fake: FakePortLayer, identity: str, context: Any) -> FakeProcess:
    """Runs a prepared exec: by the script for its first argument, or "*"."""
    prepared = await _exec(fake, identity, context)
    if prepared.running or prepared.HasField("exit_code"):
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"exec {identity} has already run")
    process = FakeProcess(fake.scripts.get(prepared.spec.args[0], fake.scripts["*"]))
    fake.exec_processes[identity] = process
    prepared.running = True
    prepared.pid = 77

    async def watch() -> None:
        exit_code = await process.ended()
        prepared.running = False
        prepared.exit_code = exit_code

    fake.spawn(watch())
    fake.spawn(process.run())
    return process


class _Interaction(interaction_pb2_grpc.InteractionServiceServicer):
    def __init__(self, fake: FakePortLayer) -> None:
        self._fake = fake

    async def Attach(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        fake = self._fake
        first = await anext(requests)
        opening = first.open
        await fake.enter("Attach", opening, context)
        container = await fake.container(opening.container, context)
        yield interaction_pb2.AttachResponse(attached=interaction_pb2.Attached())
        async with fake.watching("Attach"):
            # Attaching comes before starting: the process may be yet to come.
            earlier = fake.processes.get(container.id)
            if earlier is not None and earlier.exit_code is not None:
                earlier = None
            process = earlier
            if process is None:
                async with fake.changed:
                    before = fake.processes.get(container.id)
                    await fake.changed.wait_for(lambda: fake.processes.get(container.id) is not before)
                process = fake.processes[container.id]
            replay = opening.logs or earlier is None
            left = asyncio.Event()
            fake.spawn(_pump_stdin(process, requests, left))
            async for chunk in process.follow(0 if replay else len(process.chunks), left):
                if (chunk.stream == STDOUT and opening.stdout) or (chunk.stream == STDERR and opening.stderr):
                    yield interaction_pb2.AttachResponse(output=chunk)
            if left.is_set():
                return
            exit_code = await process.ended()
        yield interaction_pb2.AttachResponse(exited=interaction_pb2.ProcessExited(exit_code=exit_code))

    async def AttachExec(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        first = await anext(requests)
        await self._fake.enter("AttachExec", first.open, context)
        process = await start_exec(self._fake, first.open.exec_id, context)
        yield interaction_pb2.AttachResponse(attached=interaction_pb2.Attached())
        async with self._fake.watching("AttachExec"):
            left = asyncio.Event()
            self._fake.spawn(_pump_stdin(process, requests, left))
            async for chunk in process.follow(0, left):
                yield interaction_pb2.AttachResponse(output=chunk)
            if left.is_set():
                return
            exit_code = await process.ended()
        yield interaction_pb2.AttachResponse(exited=interaction_pb2.ProcessExited(exit_code=exit_code))

    async def ReadLogs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._fake.enter("ReadLogs", request, context)
        container = await self._fake.container(request.container, context)
        process = self._fake.processes.get(container.id)
        if process is None:
            return
        wanted = {stream for stream, on in ((STDOUT, request.stdout), (STDERR, request.stderr)) if on}
        stamp = b"2026-01-02T03:04:05.000000006Z " if request.timestamps else b""
        async with self._fake.watching("ReadLogs"):
            chunks = process.follow() if request.follow else _each(list(process.chunks))
            async for chunk in chunks:
                if chunk.stream in wanted:
                    lines = b"".join(stamp + line for line in chunk.data.splitlines(keepends=True))
                    yield interaction_pb2.ReadLogsResponse(stream=chunk.stream, data=lines)


async def _each(chunks: list[interaction_pb2.OutputChunk]) -> AsyncIterator[interaction_pb2.OutputChunk]:
    for chunk in chunks:
        yield chunk


async def _pump_stdin(process: FakeProcess, requests: AsyncIterator[Any], left: asyncio.Event) -> None:
    with contextlib.suppress(asyncio.CancelledError, grpc.aio.UsageError, grpc.RpcError):
        async for request in requests:
            if request.WhichOneof("message") == "close_stdin":
                await process.close_stdin()
            elif request.WhichOneof("message") == "detach":
                await process.leave(left)
            else:
                await process.feed(request.stdin)


class _Storage(storage_pb2_grpc.StorageServiceServicer):
    def __init__(self, fake: FakePortLayer) -> None:
        self._fake = fake

    async def LoadImages(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        await self._fake.enter("LoadImages", None, context)
        yield storage_pb2.LoadImagesResponse(progress="reading the archive")
        data = bytearray()
        async with self._fake.watching("LoadImages"):
            async for request in requests:
                assert len(request.data) <= 1 << 20
                data += request.data
            await asyncio.sleep(0.1)  # a call that was cancelled first looks like one that ended
        self._fake.uploads["LoadImages"] = bytes(data)
        if data.startswith(b"broken"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the archive is broken")
        image_id = self._fake.add_image("loaded:latest")
        yield storage_pb2.LoadImagesResponse(image_id=image_id, tags=["loaded:latest"])
        yield storage_pb2.LoadImagesResponse(image_id=self._fake.add_image())

    async def ImportImage(self, requests: AsyncIterator[Any], context: Any) -> Any:
        first = await anext(requests)
        await self._fake.enter("ImportImage", first.options, context)
        data = bytearray()
        async with self._fake.watching("ImportImage"):
            async for request in requests:
                data += request.data
            await asyncio.sleep(0.1)  # a call that was cancelled first looks like one that ended
        self._fake.uploads["ImportImage"] = bytes(data)
        if data.startswith(b"broken"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the archive is broken")
        return storage_pb2.ImportImageResponse(image_id=self._fake.add_image(first.options.reference))

    async def SaveImages(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._fake.enter("SaveImages", request, context)
        for name in request.names:
            await self._image(name, context)
        async with self._fake.watching("SaveImages"):
            for start in range(0, len(self._fake.archive), 1 << 18):
                yield storage_pb2.SaveImagesResponse(data=self._fake.archive[start : start + (1 << 18)])

    async def _image(self, name: str, context: Any) -> types_pb2.Image:
        image = self._fake.image(name)
        if image is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"No such image: {name}")
        assert image is not None
        return image

    async def ListImages(self, request: Any, context: Any) -> Any:
        await self._fake.enter("ListImages", request, context)
        return storage_pb2.ListImagesResponse(images=list(self._fake.images.values()))

    async def GetImage(self, request: Any, context: Any) -> Any:
        await self._fake.enter("GetImage", request, context)
        return storage_pb2.GetImageResponse(image=await self._image(request.name, context))

    async def TagImage(self, request: Any, context: Any) -> Any:
        await self._fake.enter("TagImage", request, context)
        image = await self._image(request.source, context)
        image.tags.append(request.target)
        return storage_pb2.TagImageResponse()

    async def RemoveImage(self, request: Any, context: Any) -> Any:
        await self._fake.enter("RemoveImage", request, context)
        image = await self._image(request.name, context)
        del self._fake.images[image.id]
        return storage_pb2.RemoveImageResponse(untagged=image.tags, deleted=[image.id])

    async def PruneImages(self, request: Any, context: Any) -> Any:
        await self._fake.enter("PruneImages", request, context)
        deleted = [image.id for image in self._fake.images.values() if request.all or not image.tags]
        for image_id in deleted:
            del self._fake.images[image_id]
        return storage_pb2.PruneImagesResponse(deleted=deleted, reclaimed_bytes=100 * len(deleted))

    async def GetHistory(self, request: Any, context: Any) -> Any:
        await self._fake.enter("GetHistory", request, context)
        image = await self._image(request.name, context)
        entry = storage_pb2.HistoryEntry(
            id=image.id, created_unix_ns=image.created_unix_ns, created_by="CMD sh", size_bytes=5, tags=image.tags
        )
        older = storage_pb2.HistoryEntry(id="<missing>", created_by="ADD file:x in /")
        return storage_pb2.GetHistoryResponse(entries=[entry, older])

    async def GetDiskUsage(self, request: Any, context: Any) -> Any:
        await self._fake.enter("GetDiskUsage", request, context)
        return storage_pb2.GetDiskUsageResponse(images_bytes=7_000, containers_bytes=900, free_bytes=1 << 30)


class _Network(network_pb2_grpc.NetworkServiceServicer):
    def __init__(self, fake: FakePortLayer) -> None:
        self._fake = fake

    async def ListNetworks(self, request: Any, context: Any) -> Any:
        await self._fake.enter("ListNetworks", request, context)
        return network_pb2.ListNetworksResponse(networks=self._fake.networks)

    async def GetNetwork(self, request: Any, context: Any) -> Any:
        await self._fake.enter("GetNetwork", request, context)
        return network_pb2.GetNetworkResponse(network=await self._fake.network(request.network, context))


class _Events(events_pb2_grpc.EventsServiceServicer):
    def __init__(self, fake: FakePortLayer) -> None:
        self._fake = fake

    async def StreamEvents(self, request: Any, context: Any) -> AsyncIterator[Any]:
        fake = self._fake
        await fake.enter("StreamEvents", request, context)
        position = 0 if request.since_unix_ns else len(fake.events)
        yield events_pb2.StreamEventsResponse()
        async with fake.watching("StreamEvents"):
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


class _System(system_pb2_grpc.SystemServiceServicer):
    def __init__(self, fake: FakePortLayer) -> None:
        self._fake = fake

    async def GetInfo(self, request: Any, context: Any) -> Any:
        await self._fake.enter("GetInfo", request, context)
        states = [each.state.status for each in self._fake.containers.values()]
        running = sum(status in _RUNNING for status in states)
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
