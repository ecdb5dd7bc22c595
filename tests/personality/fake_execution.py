"""The fake port layer's containers and execs."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from fake_process import FakeProcess
from fake_state import RUNNING, FakeState

from portlayer.v1 import execution_pb2, execution_pb2_grpc, types_pb2


class Execution(execution_pb2_grpc.ExecutionServiceServicer):
    def __init__(self, fake: FakeState) -> None:
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
        already = container.state.status in RUNNING
        if not already:
            await self._fake.start(container)
        return execution_pb2.StartContainerResponse(already_running=already, container=container)

    async def StopContainer(self, request: Any, context: Any) -> Any:
        await self._fake.enter("StopContainer", request, context)
        container = await self._fake.container(request.container, context)
        was_running = container.state.status in RUNNING
        if was_running:
            await self._end(container, 143)
        return execution_pb2.StopContainerResponse(was_running=was_running)

    async def _end(self, container: types_pb2.Container, exit_code: int) -> None:
        await self._fake.processes[container.id].end(exit_code)
        async with self._fake.changed:
            await self._fake.changed.wait_for(lambda: container.state.status not in RUNNING)

    async def KillContainer(self, request: Any, context: Any) -> Any:
        await self._fake.enter("KillContainer", request, context)
        container = await self._fake.running(request.container, context)
        await self._end(container, 128 + (request.signal or 9))
        return execution_pb2.KillContainerResponse()

    async def RestartContainer(self, request: Any, context: Any) -> Any:
        await self._fake.enter("RestartContainer", request, context)
        container = await self._fake.container(request.container, context)
        if container.state.status in RUNNING:
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
        if container.state.status in RUNNING:
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
            each for each in self._fake.containers.values() if not request.running_only or each.state.status in RUNNING
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
            return container.state.status not in RUNNING

        yield execution_pb2.WaitContainerResponse(armed=True)
        async with fake.changed:
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


async def _exec(fake: FakeState, identity: str, context: Any) -> execution_pb2.Exec:
    if identity not in fake.execs:
        await context.abort(grpc.StatusCode.NOT_FOUND, f"No such exec instance: {identity}")
    return fake.execs[identity]


async def start_exec(fake: FakeState, identity: str, context: Any) -> FakeProcess:
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
