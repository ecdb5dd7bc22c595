"""ExecutionService: life of containers and of processes in them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from portlayer.errors import InvalidArgumentError
from portlayer.execution import Container, Manager, states
from portlayer.execution.run import Ended
from portlayer.services.status import grpc_errors
from portlayer.v1 import execution_pb2 as pb
from portlayer.v1 import execution_pb2_grpc

SIGKILL = 9
_DEFAULT_INTERVAL_MS, _MIN_INTERVAL_MS = 1000, 100
_MAX_WINDOW = 0xFFFF

Context = grpc.aio.ServicerContext[Any, Any]


class ExecutionServicer(execution_pb2_grpc.ExecutionServiceServicer):
    """See proto/portlayer/v1/execution.proto."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    # --- life

    async def CreateContainer(self, request: pb.CreateContainerRequest, context: Context) -> pb.CreateContainerResponse:
        async with grpc_errors(context):
            container = await self._manager.create(request.request_id, request.name, request.spec)
            return pb.CreateContainerResponse(container=container.to_proto())

    async def StartContainer(self, request: pb.StartContainerRequest, context: Context) -> pb.StartContainerResponse:
        async with grpc_errors(context):
            container = self._manager.get(request.container)
            started = await container.start()
            return pb.StartContainerResponse(already_running=not started, container=container.to_proto())

    async def StopContainer(self, request: pb.StopContainerRequest, context: Context) -> pb.StopContainerResponse:
        async with grpc_errors(context):
            timeout_s = request.timeout_s if request.HasField("timeout_s") else None
            container = self._manager.get(request.container)
            return pb.StopContainerResponse(was_running=await container.stop(timeout_s, _signal(request.signal)))

    async def KillContainer(self, request: pb.KillContainerRequest, context: Context) -> pb.KillContainerResponse:
        async with grpc_errors(context):
            await self._manager.get(request.container).kill(_signal(request.signal) or SIGKILL)
            return pb.KillContainerResponse()

    async def RestartContainer(
        self, request: pb.RestartContainerRequest, context: Context
    ) -> pb.RestartContainerResponse:
        async with grpc_errors(context):
            timeout_s = request.timeout_s if request.HasField("timeout_s") else None
            await self._manager.get(request.container).restart(timeout_s, _signal(request.signal))
            return pb.RestartContainerResponse()

    async def PauseContainer(self, request: pb.PauseContainerRequest, context: Context) -> pb.PauseContainerResponse:
        async with grpc_errors(context):
            await self._manager.get(request.container).pause()
            return pb.PauseContainerResponse()

    async def UnpauseContainer(
        self, request: pb.UnpauseContainerRequest, context: Context
    ) -> pb.UnpauseContainerResponse:
        async with grpc_errors(context):
            await self._manager.get(request.container).resume()
            return pb.UnpauseContainerResponse()

    async def RenameContainer(self, request: pb.RenameContainerRequest, context: Context) -> pb.RenameContainerResponse:
        async with grpc_errors(context):
            await self._manager.rename(self._manager.get(request.container), request.new_name)
            return pb.RenameContainerResponse()

    async def UpdateContainer(self, request: pb.UpdateContainerRequest, context: Context) -> pb.UpdateContainerResponse:
        async with grpc_errors(context):
            container = self._manager.get(request.container)
            if request.HasField("restart"):
                await container.update(request.restart)
            return pb.UpdateContainerResponse()

    async def RemoveContainer(self, request: pb.RemoveContainerRequest, context: Context) -> pb.RemoveContainerResponse:
        async with grpc_errors(context):
            await self._manager.get(request.container).remove(force=request.force)
            return pb.RemoveContainerResponse()

    # --- looking

    async def GetContainer(self, request: pb.GetContainerRequest, context: Context) -> pb.GetContainerResponse:
        async with grpc_errors(context):
            container = self._manager.get(request.container)
            size = await container.machine.writable_disk_usage() if request.size else 0
            return pb.GetContainerResponse(container=container.to_proto(), size_rw_bytes=size)

    async def ListContainers(self, request: pb.ListContainersRequest, context: Context) -> pb.ListContainersResponse:
        async with grpc_errors(context):
            containers = [one.to_proto() for one in self._manager.containers() if one.live or not request.running_only]
            return pb.ListContainersResponse(containers=containers)

    async def WaitContainer(
        self, request: pb.WaitContainerRequest, context: Context
    ) -> AsyncIterator[pb.WaitContainerResponse]:
        async with grpc_errors(context):
            container = self._manager.get(request.container)
            ending = _ending(container, request.condition)
            yield pb.WaitContainerResponse(armed=True)
            ended = await asyncio.shield(ending) if ending is not None else _last(container)
            yield pb.WaitContainerResponse(exit_code=ended.exit_code, error=ended.error)

    async def ListProcesses(self, request: pb.ListProcessesRequest, context: Context) -> pb.ListProcessesResponse:
        async with grpc_errors(context):
            listed = await self._manager.get(request.container).processes()
            # The two messages are the same field by field; each API keeps its own.
            return pb.ListProcessesResponse(
                processes=[pb.ProcessInfo.FromString(one.SerializeToString()) for one in listed.processes]
            )

    async def StreamStats(
        self, request: pb.StreamStatsRequest, context: Context
    ) -> AsyncIterator[pb.StreamStatsResponse]:
        async with grpc_errors(context):
            container = self._manager.get(request.container)
            interval_s = max(request.interval_ms or _DEFAULT_INTERVAL_MS, _MIN_INTERVAL_MS) / 1000
            due = time.monotonic()
            while True:
                stats = await container.stats()
                yield stats.sample()
                if request.one_shot or not (container.live or stats.known):
                    return
                due = max(due + interval_s, time.monotonic())
                await asyncio.sleep(due - time.monotonic())

    async def ResizeContainer(self, request: pb.ResizeContainerRequest, context: Context) -> pb.ResizeContainerResponse:
        async with grpc_errors(context):
            _check_window(request.rows, request.columns)
            await self._manager.get(request.container).resize(request.rows, request.columns)
            return pb.ResizeContainerResponse()

    # --- exec

    async def CreateExec(self, request: pb.CreateExecRequest, context: Context) -> pb.CreateExecResponse:
        async with grpc_errors(context):
            container = self._manager.get(request.container)
            self._manager.check_exec(request.spec)
            return pb.CreateExecResponse(exec_id=container.execs.create(request.spec).id)

    async def StartExec(self, request: pb.StartExecRequest, context: Context) -> pb.StartExecResponse:
        async with grpc_errors(context):
            container, process = self._manager.get_exec(request.exec_id)
            await container.execs.start(process)
            return pb.StartExecResponse()

    async def GetExec(self, request: pb.GetExecRequest, context: Context) -> pb.GetExecResponse:
        async with grpc_errors(context):
            _, process = self._manager.get_exec(request.exec_id)
            return pb.GetExecResponse(exec=process.to_proto())

    async def ResizeExec(self, request: pb.ResizeExecRequest, context: Context) -> pb.ResizeExecResponse:
        async with grpc_errors(context):
            _check_window(request.rows, request.columns)
            _, process = self._manager.get_exec(request.exec_id)
            await process.resize(request.rows, request.columns)
            return pb.ResizeExecResponse()


def _ending(
    container: Container, condition: pb.WaitContainerRequest.Condition.ValueType
) -> asyncio.Future[Ended] | None:
    """What to wait for; None when the condition holds already."""
    if condition == pb.WaitContainerRequest.CONDITION_REMOVED:
        return container.life.removal()
    if condition == pb.WaitContainerRequest.CONDITION_NEXT_EXIT or container.state.status in states.ACTIVE:
        return container.next_exit()
    return None


def _last(container: Container) -> Ended:
    return Ended(container.state.exit_code, error=container.state.error)


def _signal(number: int) -> int:
    if number > 64:
        raise InvalidArgumentError(f"invalid signal: {number}")
    return number


def _check_window(rows: int, columns: int) -> None:
    if rows > _MAX_WINDOW or columns > _MAX_WINDOW:
        raise InvalidArgumentError(f"a terminal has at most {_MAX_WINDOW} rows and columns")
