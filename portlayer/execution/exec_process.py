"""A process that runs beside a container's init."""

from __future__ import annotations

import asyncio
import contextlib
import signal

from portlayer.agent import AgentClient, AgentError, AgentRpcError
from portlayer.agent.errors import FAILED_PRECONDITION, RESOURCE_EXHAUSTED
from portlayer.errors import ConflictError, ExhaustedError, LaunchError
from portlayer.execution.launch_failure import launch_error
from portlayer.execution.standard_input import StandardInput
from portlayer.execution.streams import OutputHub
from portlayer.execution.terminal import resize_terminal
from portlayer.logs import Chunk
from portlayer.v1 import execution_pb2
from tether.v1 import tether_pb2

# Why a launch failed, when it is neither "not found" nor "not executable": Docker has another code for execs.
_OTHER, _EXEC_OTHER = 128, 126


class ExecProcess:
    """Prepared once, started at most once. Its output goes to whoever is attached, or nowhere."""

    def __init__(self, exec_id: str, container_id: str, spec: execution_pb2.ExecSpec) -> None:
        self.id = exec_id
        self.container_id = container_id
        self.spec = spec
        self.hub = OutputHub()
        self.stdin: StandardInput | None = None
        self.running = False
        self.exit_code: int | None = None
        self.pid = 0
        self.ended = asyncio.Event()
        self._started = False
        # To the agent of the run that it was started in.
        self._client: AgentClient | None = None

    def claim(self) -> None:
        """Marks it as started. Raises ConflictError the second time."""
        if self._started:
            raise ConflictError(f"exec command {self.id} has already run")
        self._started = True

    async def start(self, client: AgentClient, request: tether_pb2.ExecRequest) -> None:
        """Launches it. Raises LaunchError, AgentError."""
        self._client = client
        try:
            response = await client.exec(request)
        except AgentRpcError as error:
            self._end(128)
            if error.rpc_code == RESOURCE_EXHAUSTED:
                raise ExhaustedError(error.message) from error
            if error.rpc_code == FAILED_PRECONDITION:
                raise ConflictError(f"container {self.container_id} is not running") from error
            raise
        except AgentError:
            self._end(128)
            raise
        if response.HasField("failure"):
            failure = launch_error(response.failure, "container process")
            exit_code = failure.exit_code if failure.exit_code != _OTHER else _EXEC_OTHER
            self._end(exit_code)
            raise LaunchError(
                str(failure) if failure.step == "user" else f"OCI runtime exec failed: exec failed: {failure}",
                exit_code=exit_code,
                errno=failure.errno,
                step=failure.step,
            )
        self.pid = response.pid
        self.running = True
        if request.process.stdin:
            self.stdin = StandardInput(client, self.id)

    async def resize(self, rows: int, columns: int) -> None:
        """Sets the size of its terminal; before the start, the first size. Raises ConflictError."""
        if self._client is None or not self.running:
            self.spec.terminal_rows, self.spec.terminal_columns = rows, columns
        else:
            await resize_terminal(self._client, self.id, rows, columns)

    async def kill(self) -> None:
        """Sends SIGKILL; nothing happens when it has ended, or the container has."""
        if self._client is not None:
            with contextlib.suppress(AgentError):
                await self._client.signal(tether_pb2.SignalRequest(process_id=self.id, signal=signal.SIGKILL))

    async def watch(self, client: AgentClient) -> int:
        """Hands its output on until it has ended; returns its exit code. The container's end ends it with 137."""
        exit_code = 137
        follow = client.follow(self.id, 0)
        try:
            async for message in follow:
                if message.HasField("exited"):
                    exit_code = message.exited.exit_code
                    follow.acknowledge(follow.offset, exit_recorded=True)
                    break
                output = message.output
                stream = 2 if output.stream == tether_pb2.STREAM_STDERR else 1
                await self.hub.publish(Chunk(stream, output.data))
                follow.acknowledge(output.offset + len(output.data))
        except AgentError:
            pass  # the container's own run tells what happened to its VM
        finally:
            with contextlib.suppress(AgentError):
                await follow.aclose()
            self._end(exit_code)
        return exit_code

    def to_proto(self) -> execution_pb2.Exec:
        return execution_pb2.Exec(
            id=self.id,
            container_id=self.container_id,
            spec=self.spec,
            running=self.running,
            exit_code=self.exit_code,
            pid=self.pid,
        )

    def _end(self, exit_code: int) -> None:
        self.running = False
        self.exit_code = exit_code
        self.hub.end_run()
        self.ended.set()
