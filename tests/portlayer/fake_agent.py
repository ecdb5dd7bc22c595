"""An agent without a VM, for tests of what talks to agents: programs are coroutines, the protocol is the real one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tether.journal import Journal
from tether.v1 import tether_pb2 as pb
from tether.wire import DataReceived, Event, RequestReceived, Role, Session, SessionLost, SessionOpened

STDOUT, STDERR = 1, 2
NOT_FOUND, FAILED_PRECONDITION, OUT_OF_RANGE, INTERNAL = 5, 9, 11, 13


@dataclass(eq=False)
class FakeProcess:
    """A program under way: `read` its stdin, `write` its output, `signals` it received."""

    spec: pb.ProcessSpec
    journal: Journal = field(default_factory=Journal)
    stdin: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    signals: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    input_offset: int = 0
    exit_code: int | None = None
    room: asyncio.Event = field(default_factory=asyncio.Event)
    changed: Callable[[], None] = lambda: None
    task: asyncio.Task[None] | None = None
    window: tuple[int, int] = (0, 0)

    async def write(self, data: bytes, stream: int = STDOUT) -> None:
        while self.journal.full:
            self.room.clear()
            await self.room.wait()
        self.journal.append(stream, data, time.time_ns())
        self.changed()

    async def read(self) -> bytes:
        return await self.stdin.get()


Program = Callable[[FakeProcess], Awaitable[int]]


async def _echo(process: FakeProcess) -> int:
    await process.write(" ".join(process.spec.args[1:]).encode() + b"\n")
    return 0


async def _cat(process: FakeProcess) -> int:
    while data := await process.read():
        await process.write(data)
    return 0


async def _exit(process: FakeProcess) -> int:
    return int(process.spec.args[1])


async def _sleep(process: FakeProcess) -> int:
    """Ends by SIGTERM."""
    while await process.signals.get() != 15:
        pass
    return 143


async def _stubborn(process: FakeProcess) -> int:
    await asyncio.Event().wait()
    return 0


async def _flood(process: FakeProcess) -> int:
    for _ in range(int(process.spec.args[1])):
        await process.write(b"x" * 65536)
    return 0


async def _nothing(_: FakeProcess) -> int:
    return 0


async def _mixed(process: FakeProcess) -> int:
    await process.write(b"out\n")
    await process.write(b"err\n", STDERR)
    return 3


PROGRAMS: dict[str, Program] = {
    "echo": _echo,
    "cat": _cat,
    "exit": _exit,
    "sleep": _sleep,
    "stubborn": _stubborn,
    "flood": _flood,
    "mixed": _mixed,
    "/sbin/docker-init": _nothing,
}


class FakeAgent:
    """Lives as long as a VM's power is on; hosts connect to it one after the other."""

    def __init__(self, power_off: Callable[[], None]) -> None:
        self._power_off = power_off
        self._session = Session(Role.GUEST)
        self._writer: asyncio.StreamWriter | None = None
        self._follows: dict[int, FakeProcess] = {}
        # Follows of this session that were told the exit.
        self._told: set[int] = set()
        self.processes: dict[str, FakeProcess] = {}
        self.started_request = ""
        self.rehearsing = False
        # Rehearsals that were begun and ended.
        self.rehearsals = 0
        self.requests: list[str] = []
        # Methods that are heard but not answered, as when an answer is lost.
        self.mute: set[str] = set()
        # Why it does not freeze its VM.
        self.cannot_freeze = ""
        self.start_answer = pb.StartResponse()
        # What it says of its processes; `raw_processes` as it goes on the line, readable or not.
        self.process_list = [pb.Process(pid=1, name="init", args=["init"])]
        self.raw_processes = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._session = Session(Role.GUEST)
        self._writer = writer
        self._follows.clear()
        self._told.clear()
        self._flush()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                for event in self._session.receive_data(data):
                    self._handle(event)
                self._flush()
        if self._writer is writer:
            self._writer = None
        writer.close()

    def cut(self) -> None:
        """The line breaks."""
        if self._writer is not None:
            self._writer.close()

    def send_raw(self, data: bytes) -> None:
        """What no honest agent sends."""
        if self._writer is not None:
            self._writer.write(data)

    async def end(self) -> None:
        """The power is cut."""
        tasks = [process.task for process in self.processes.values() if process.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.cut()

    def _handle(self, event: Event) -> None:
        if isinstance(event, SessionOpened | SessionLost):
            self._follows.clear()
            self._told.clear()
        elif isinstance(event, RequestReceived):
            self.requests.append(event.method)
            if event.method not in self.mute:
                self._request(event)
        elif isinstance(event, DataReceived):
            self._acknowledged(event)

    def _request(self, event: RequestReceived) -> None:
        stream, payload = event.stream_id, event.payload
        if event.method == "Follow":
            follow = pb.FollowRequest.FromString(payload)
            process = self.processes.get(follow.process_id)
            if process is None:
                self._session.send_response(stream, code=NOT_FOUND, message="no such process")
            elif not process.journal.seek(follow.offset):
                self._session.send_response(stream, code=OUT_OF_RANGE, message="not kept")
            else:
                self._follows[stream] = process
                self._send_output()
            return
        handler: Callable[[bytes], Any] = getattr(self, f"_on_{event.method}")
        answer = handler(payload)
        if isinstance(answer, tuple):
            self._session.send_response(stream, code=answer[0], message=answer[1])
        elif isinstance(answer, bytes):
            self._session.send_response(stream, answer)
        else:
            self._session.send_response(stream, answer.SerializeToString())

    def _on_Hello(self, _: bytes) -> pb.HelloResponse:
        return pb.HelloResponse(protocol=1, started_request_id=self.started_request, ready_after_ns=1)

    def _on_Start(self, payload: bytes) -> Any:
        request = pb.StartRequest.FromString(payload)
        if self.started_request != request.request_id:
            if self.started_request:
                return (FAILED_PRECONDITION, "started already")
            self.start_answer = self._launch("init", request.process)
            if self.start_answer.pid:
                self.started_request = request.request_id
                self.rehearsing = request.rehearsal
        return self.start_answer

    def _on_Freeze(self, _: bytes) -> Any:
        return (INTERNAL, self.cannot_freeze) if self.cannot_freeze else pb.FreezeResponse()

    def _on_Reset(self, _: bytes) -> Any:
        if self.started_request:
            if not self.rehearsing:
                return (FAILED_PRECONDITION, "a container has been started")
            self.rehearsals += 1
            self._follows.clear()
            self._told.clear()
            self.processes.clear()
            self.started_request, self.rehearsing = "", False
        return pb.ResetResponse()

    def _on_Exec(self, payload: bytes) -> Any:
        request = pb.ExecRequest.FromString(payload)
        if request.process_id in self.processes:
            return pb.StartResponse(pid=1)
        return self._launch(request.process_id, request.process)

    def _launch(self, process_id: str, spec: pb.ProcessSpec) -> pb.StartResponse:
        program = PROGRAMS.get(spec.args[0])
        if program is None:
            failure = pb.LaunchFailure(step=pb.LaunchFailure.STEP_EXEC, errno=2)
            failure.message = f'exec: "{spec.args[0]}": executable file not found in $PATH'
            return pb.StartResponse(failure=failure)
        process = FakeProcess(spec, changed=self._send_output)
        self.processes[process_id] = process
        process.task = asyncio.create_task(self._run(process, program))
        return pb.StartResponse(pid=100 + len(self.processes))

    async def _run(self, process: FakeProcess, program: Program) -> None:
        process.exit_code = await program(process)
        self._send_output()

    def _on_WriteInput(self, payload: bytes) -> Any:
        request = pb.WriteInputRequest.FromString(payload)
        process = self.processes[request.process_id]
        if request.offset > process.input_offset:
            return (OUT_OF_RANGE, "a gap")
        data = request.data[process.input_offset - request.offset :]
        if data:
            process.input_offset += len(data)
            process.stdin.put_nowait(data)
        if request.close:
            process.stdin.put_nowait(b"")
        return pb.WriteInputResponse(accepted_offset=process.input_offset)

    def _on_Signal(self, payload: bytes) -> Any:
        request = pb.SignalRequest.FromString(payload)
        process = self.processes.get(request.process_id)
        if process is None or process.exit_code is not None:
            return (NOT_FOUND, "ended")
        self._deliver(process, request.signal)
        return pb.SignalResponse()

    def _on_Stop(self, payload: bytes) -> Any:
        request = pb.StopRequest.FromString(payload)
        init = self.processes["init"]
        self._deliver(init, request.signal)
        if request.HasField("grace_ms"):
            asyncio.get_running_loop().call_later(request.grace_ms / 1000, self._deliver, init, 9)
        return pb.StopResponse()

    def _deliver(self, process: FakeProcess, signal: int) -> None:
        if signal != 9:
            process.signals.put_nowait(signal)
        elif process.exit_code is None and process.task is not None:
            process.task.cancel()
            process.exit_code = 137
            self._send_output()

    def _on_Resize(self, payload: bytes) -> Any:
        request = pb.ResizeRequest.FromString(payload)
        self.processes[request.process_id].window = (request.window_size.rows, request.window_size.columns)
        return pb.ResizeResponse()

    def _on_Processes(self, _: bytes) -> Any:
        return self.raw_processes or pb.ProcessesResponse(processes=self.process_list)

    def _on_Stats(self, _: bytes) -> pb.StatsResponse:
        return pb.StatsResponse(memory_usage_bytes=4096, vm_memory_bytes=1 << 20, pids=1)

    def _on_PowerOff(self, _: bytes) -> pb.PowerOffResponse:
        asyncio.get_running_loop().call_soon(self._power_off)
        return pb.PowerOffResponse()

    def _acknowledged(self, event: DataReceived) -> None:
        process = self._follows.get(event.stream_id)
        if process is None:
            return
        if event.payload:
            request = pb.FollowRequest.FromString(event.payload)
            process.journal.acknowledge(request.offset)
            process.room.set()
            if request.exit_recorded and process is self.processes.get("init") and not self.rehearsing:
                self._power_off()
        if event.end:
            del self._follows[event.stream_id]
            self._session.send_response(event.stream_id)

    def _send_output(self) -> None:
        for stream, process in list(self._follows.items()):
            while piece := process.journal.take():
                output = pb.Output(offset=piece.offset, data=piece.data, time_unix_ns=piece.time_ns)
                output.stream = pb.STREAM_STDERR if piece.stream == STDERR else pb.STREAM_STDOUT
                self._session.send_data(stream, pb.FollowResponse(output=output).SerializeToString())
            if process.exit_code is not None and stream not in self._told:
                self._told.add(stream)
                exited = pb.Exited(exit_code=process.exit_code, end_offset=process.journal.end)
                self._session.send_data(stream, pb.FollowResponse(exited=exited).SerializeToString())
        self._flush()

    def _flush(self) -> None:
        data = self._session.data_to_send()
        if data and self._writer is not None:
            self._writer.write(data)
