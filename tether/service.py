"""The guest API: what each call of tether.v1.Tether does. See proto/tether/v1/tether.proto for the promises."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError, Message

from tether import container
from tether.channel import Channel
from tether.container import Process, Streams
from tether.journal import Piece
from tether.launch import LaunchError, Step
from tether.loop import Loop
from tether.process import resize
from tether.sandbox import Sandbox
from tether.v1 import tether_pb2
from tether.wire import DataReceived, Event, LocalProtocolError, RequestReceived, SessionLost, SessionOpened

if TYPE_CHECKING:
    from tether.guestinfo import Hypervisor  # loaded where it is wanted: no boot has to wait for it

PROTOCOL = 1
SERVICE = "tether.v1.Tether"
INIT = "init"
_MAX_PROCESSES = 128
# Answers to Exec that are kept after their process was forgotten, or never came to be.
_MAX_ANSWERS = 1024
_MAX_SIGNAL = 64
# So long output of other processes may still be taken after the host has recorded init's exit.
_HAND_OVER_S = 3.0
# What is on its way to the host goes first, as far as the line takes it.
_LAST_WORDS_S = 0.02
_INVALID_ARGUMENT, _NOT_FOUND, _RESOURCE_EXHAUSTED, _FAILED_PRECONDITION = 3, 5, 8, 9
_OUT_OF_RANGE, _UNIMPLEMENTED, _INTERNAL = 11, 12, 13


def _kill_hard(process: Process) -> None:
    container.kill(process, signal.SIGKILL)


class RpcError(Exception):
    """A call's failure, as a google.rpc code and a sentence."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Follower:
    """A Follow call that is open."""

    def __init__(self, stream_id: int, process: Process) -> None:
        self.stream_id = stream_id
        self.process = process
        self.exit_sent = False


class Service:
    """Answers the host over one channel, which `attach` gives a descriptor."""

    def __init__(
        self,
        loop: Loop,
        sandbox: Sandbox,
        version: str,
        power_off: Callable[[], None],
        hypervisor: Callable[[], Hypervisor],
    ) -> None:
        self._loop = loop
        self._sandbox = sandbox
        self._version = version
        self._power_off = power_off
        self._hypervisor = hypervisor
        self._frozen_request = ""
        self._ready_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._ending = False
        self._followers: dict[int, Follower] = {}
        self._inputs: list[tuple[int, tether_pb2.WriteInputRequest]] = []
        self._begin_anew()
        self._streams = Streams(loop)
        self._streams.on_output = self._send_output
        self._streams.on_input_taken = self._retry_inputs
        self._methods: dict[str, tuple[type[Message], Callable[[Any], Message]]] = {
            "Hello": (tether_pb2.HelloRequest, self._hello),
            "Start": (tether_pb2.StartRequest, self._start),
            "Reset": (tether_pb2.ResetRequest, self._reset),
            "Freeze": (tether_pb2.FreezeRequest, self._freeze),
            "Exec": (tether_pb2.ExecRequest, self._exec),
            "Signal": (tether_pb2.SignalRequest, self._signal),
            "Stop": (tether_pb2.StopRequest, self._stop),
            "Resize": (tether_pb2.ResizeRequest, self._resize),
            "Processes": (tether_pb2.ProcessesRequest, self._list),
            "Stats": (tether_pb2.StatsRequest, self._stats),
            "PowerOff": (tether_pb2.PowerOffRequest, self._shut_down),
        }
        loop.watch_children(self._reap)
        self._channel = Channel(loop, self._on_event, self._on_room)
        self.attach = self._channel.attach

    def _begin_anew(self) -> None:
        """Nothing has been started."""
        self._boot_id = os.urandom(16).hex()
        self._started_request = ""
        self._rehearsal = False
        self._first_answer = tether_pb2.StartResponse()
        self._hostname = ""
        self._kill_at = math.inf
        self._settled = False
        self._processes: dict[str, Process] = {}
        self._answers: dict[str, tether_pb2.StartResponse] = {}

    # --- events of the session

    def _on_event(self, event: Event) -> None:
        if isinstance(event, SessionOpened | SessionLost):
            self._followers.clear()
            self._inputs.clear()
        elif isinstance(event, RequestReceived):
            self._guarded(event.stream_id, partial(self._request, event))
        elif isinstance(event, DataReceived):
            self._guarded(event.stream_id, partial(self._follow_more, event))

    def _guarded(self, stream_id: int, call: Callable[[], None]) -> None:
        """No request can bring the agent down."""
        try:
            call()
        except RpcError as error:
            self._fail(stream_id, error.code, str(error))
        except DecodeError:
            self._fail(stream_id, _INVALID_ARGUMENT, "the message cannot be decoded")
        except Exception as error:
            sys.stderr.write(f"tether: {type(error).__name__}: {error}\n")
            self._fail(stream_id, _INTERNAL, f"{type(error).__name__}: {error}")

    def _fail(self, stream_id: int, code: int, message: str) -> None:
        self._followers.pop(stream_id, None)
        with suppress(LocalProtocolError):  # it has its answer already
            self._channel.session.send_response(stream_id, code=code, message=message)
        self._end_when_handed_over()

    def _request(self, event: RequestReceived) -> None:
        if event.service != SERVICE:
            raise RpcError(_UNIMPLEMENTED, f"there is no service {event.service!r}")
        if event.method == "Follow":
            self._follow(event)
        elif event.method == "WriteInput":
            self._write_input(event.stream_id, tether_pb2.WriteInputRequest.FromString(event.payload))
        elif event.method in self._methods:
            message, handler = self._methods[event.method]
            response = handler(message.FromString(event.payload))
            self._channel.session.send_response(event.stream_id, response.SerializeToString())
        else:
            raise RpcError(_UNIMPLEMENTED, f"there is no method {event.method!r}")

    # --- calls

    def _hello(self, _: tether_pb2.HelloRequest) -> Message:
        return tether_pb2.HelloResponse(
            protocol=PROTOCOL,
            agent_version=self._version,
            boot_id=self._boot_id,
            started_request_id=self._started_request,
            ready_after_ns=self._ready_ns,
        )

    def _start(self, request: tether_pb2.StartRequest) -> Message:
        if self._started_request:
            if request.request_id == self._started_request:
                return self._first_answer
            raise RpcError(_FAILED_PRECONDITION, "the container has been started already")
        if not request.request_id or not request.process.args or len(request.entropy) < 32:
            raise RpcError(_INVALID_ARGUMENT, "a start needs a request id, a program and 32 bytes of entropy")
        self._started_request = request.request_id
        self._rehearsal = request.rehearsal
        self._hostname = request.hostname
        self._first_answer = self._launch(INIT, request.process, partial(self._sandbox.start, request))
        self._boot_id = os.urandom(16).hex()
        return self._first_answer

    def _reset(self, _: tether_pb2.ResetRequest) -> Message:
        if self._started_request and not self._rehearsal:
            raise RpcError(_FAILED_PRECONDITION, "a container has been started: this VM is its own until it ends")
        if self._started_request:
            for follower in list(self._followers.values()):
                self._fail(follower.stream_id, _FAILED_PRECONDITION, "the rehearsal is over")
            for process in self._processes.values():
                self._streams.discard(process)
            self._sandbox.reset()
            self._begin_anew()
        return tether_pb2.ResetResponse()

    def _freeze(self, request: tether_pb2.FreezeRequest) -> Message:
        if not request.request_id:
            raise RpcError(_INVALID_ARGUMENT, "freezing needs a request id")
        if request.request_id == self._frozen_request:
            return tether_pb2.FreezeResponse()
        if self._started_request:
            raise RpcError(_FAILED_PRECONDITION, "something has been started here, which its clones would share")
        try:
            hypervisor = self._hypervisor()
        except OSError as error:
            raise RpcError(_FAILED_PRECONDITION, f"this VM cannot be frozen from inside: {error}") from error
        self._frozen_request = request.request_id
        self._loop.call_later(_LAST_WORDS_S, partial(self._freeze_now, hypervisor))
        return tether_pb2.FreezeResponse()

    def _freeze_now(self, hypervisor: Hypervisor) -> None:
        """The answer to Freeze is on its way. The loop goes on: it is the whole VM that is about to stand still."""
        try:
            if self._started_request:
                raise OSError(0, "something has been started since")
            hypervisor.ask_to_freeze()
        except OSError as error:
            self._not_frozen(hypervisor, error)
        else:
            self._loop.watch(hypervisor.fileno(), partial(self._thawed, hypervisor))

    def _thawed(self, hypervisor: Hypervisor) -> None:
        self._loop.forget(hypervisor.fileno())
        try:
            hypervisor.hear_of_freezing()
        except OSError as error:
            self._not_frozen(hypervisor, error)
            return
        hypervisor.close()
        self._followers.clear()
        self._inputs.clear()
        self._channel.begin_anew()

    def _not_frozen(self, hypervisor: Hypervisor, error: OSError) -> None:
        hypervisor.close()
        self._frozen_request = ""
        sys.stderr.write(f"tether: not frozen: {error}\n")

    def _exec(self, request: tether_pb2.ExecRequest) -> Message:
        if known := self._processes.get(request.process_id):
            return known.response
        if answer := self._answers.get(request.process_id):
            return answer
        init = self._running_init()
        if not request.process_id or not request.process.args:
            raise RpcError(_INVALID_ARGUMENT, "an exec needs a process id and a program")
        if len(self._processes) >= _MAX_PROCESSES:
            raise RpcError(_RESOURCE_EXHAUSTED, f"{_MAX_PROCESSES} processes are running or not yet recorded")
        launch = partial(self._sandbox.execute, request.process, init.pid, self._hostname)
        answer = self._launch(request.process_id, request.process, launch)
        if answer.HasField("failure"):
            self._remember(request.process_id, answer)
        return answer

    def _remember(self, process_id: str, answer: tether_pb2.StartResponse) -> None:
        """Keeps the answer for an Exec that is repeated late: no command is run twice."""
        self._answers[process_id] = answer
        if len(self._answers) > _MAX_ANSWERS:
            del self._answers[next(iter(self._answers))]

    def _launch(
        self, process_id: str, spec: tether_pb2.ProcessSpec, launch: Callable[[], Any]
    ) -> tether_pb2.StartResponse:
        try:
            launched = launch()
        except LaunchError as error:
            return _failure(error)
        except OSError as error:
            return _failure(LaunchError(Step.SETUP, error.errno or 0, f"preparing the container: {error}"))
        process = self._streams.adopt(process_id, launched, spec)
        self._processes[process_id] = process
        return process.response

    def _signal(self, request: tether_pb2.SignalRequest) -> Message:
        if not 1 <= request.signal <= _MAX_SIGNAL:
            raise RpcError(_INVALID_ARGUMENT, f"{request.signal} is no signal")
        process = self._process(request.process_id)
        if request.all:
            self._sandbox.signal_all(request.signal)
        elif not container.kill(process, request.signal):
            raise RpcError(_NOT_FOUND, "the process has ended")
        return tether_pb2.SignalResponse()

    def _stop(self, request: tether_pb2.StopRequest) -> Message:
        init = self._process(INIT)
        if request.signal > _MAX_SIGNAL:
            raise RpcError(_INVALID_ARGUMENT, f"{request.signal} is no signal")
        container.kill(init, request.signal or signal.SIGTERM)
        if request.HasField("grace_ms"):
            grace_s = request.grace_ms / 1000
            if time.monotonic() + grace_s < self._kill_at:
                self._kill_at = time.monotonic() + grace_s
                self._loop.call_later(grace_s, partial(_kill_hard, init))
        return tether_pb2.StopResponse()

    def _resize(self, request: tether_pb2.ResizeRequest) -> Message:
        process = self._process(request.process_id)
        if not process.terminal or process.stdio.stdin is None:
            raise RpcError(_FAILED_PRECONDITION, "the process has no terminal")
        resize(process.stdio.stdin, request.window_size.rows, request.window_size.columns)
        return tether_pb2.ResizeResponse()

    def _list(self, _: tether_pb2.ProcessesRequest) -> Message:
        self._running_init()
        return tether_pb2.ProcessesResponse(processes=self._sandbox.processes())

    def _stats(self, _: tether_pb2.StatsRequest) -> Message:
        if INIT not in self._processes:
            raise RpcError(_FAILED_PRECONDITION, "the container has not been started")
        return self._sandbox.stats()

    def _shut_down(self, _: tether_pb2.PowerOffRequest) -> Message:
        self._end()
        return tether_pb2.PowerOffResponse()

    # --- input

    def _write_input(self, stream_id: int, request: tether_pb2.WriteInputRequest) -> None:
        process = self._process(request.process_id)
        skip = process.input_offset - request.offset
        if skip < 0:
            raise RpcError(_OUT_OF_RANGE, f"input goes on at {process.input_offset}, not at {request.offset}")
        data = request.data[skip:]
        if data and process.input_closed:
            raise RpcError(_FAILED_PRECONDITION, "stdin is closed")
        if data and not self._streams.write(process, data):
            self._inputs.append((stream_id, request))
            return
        if request.close:
            self._streams.end_input(process)
        response = tether_pb2.WriteInputResponse(accepted_offset=process.input_offset)
        self._channel.session.send_response(stream_id, response.SerializeToString())

    def _retry_inputs(self, _: Process) -> None:
        waiting, self._inputs = self._inputs, []
        for stream_id, request in waiting:
            self._guarded(stream_id, partial(self._write_input, stream_id, request))
        self._channel.flush()

    # --- output

    def _follow(self, event: RequestReceived) -> None:
        request = tether_pb2.FollowRequest.FromString(event.payload)
        process = self._process(request.process_id)
        if not process.journal.seek(request.offset):
            raise RpcError(_OUT_OF_RANGE, f"kept are {process.journal.start} to {process.journal.end}")
        for other in [follower for follower in self._followers.values() if follower.process is process]:
            self._fail(other.stream_id, _FAILED_PRECONDITION, "another Follow took over")
        self._followers[event.stream_id] = Follower(event.stream_id, process)
        self._send_output(process)

    def _follow_more(self, event: DataReceived) -> None:
        follower = self._followers.get(event.stream_id)
        if follower is None:
            return
        process = follower.process
        if event.payload:
            request = tether_pb2.FollowRequest.FromString(event.payload)
            if not process.journal.acknowledge(request.offset):
                raise RpcError(_OUT_OF_RANGE, "acknowledged more than was written")
            self._streams.resume(process)
            if request.exit_recorded and process.finished:
                self._forget(process)
        if event.end:
            self._followers.pop(event.stream_id, None)
            self._channel.session.send_response(event.stream_id)
            self._end_when_handed_over()

    def _forget(self, process: Process) -> None:
        if process.id != INIT:
            if self._processes.pop(process.id, None):
                self._remember(process.id, process.response)
        elif not self._settled and not self._rehearsal:
            self._settled = True
            self._loop.call_later(_HAND_OVER_S, self._end)
            self._end_when_handed_over()

    def _end_when_handed_over(self) -> None:
        """The end of init is the VM's, but not before the host has what it follows of other processes."""
        if self._settled and all(
            one.process.id not in self._processes or one.process.id == INIT for one in self._followers.values()
        ):
            self._end()

    def _end(self) -> None:
        if not self._ending:
            self._ending = True
            self._loop.call_later(_LAST_WORDS_S, self._power_off)

    def _on_room(self) -> None:
        for process in {id(follower.process): follower.process for follower in self._followers.values()}.values():
            self._send_output(process)

    def _send_output(self, process: Process) -> None:
        follower = next((one for one in self._followers.values() if one.process is process), None)
        if follower is None:
            return
        session = self._channel.session
        while self._channel.has_room:
            piece = process.journal.take()
            if piece is None:
                break
            session.send_data(follower.stream_id, _output(piece))
            self._channel.flush()
        if process.finished and process.journal.drained and not follower.exit_sent:
            follower.exit_sent = True
            session.send_data(
                follower.stream_id, tether_pb2.FollowResponse(exited=process.exited()).SerializeToString()
            )
        self._channel.flush()

    # --- processes

    def _process(self, process_id: str) -> Process:
        process = self._processes.get(process_id)
        if process is None:
            raise RpcError(_NOT_FOUND, f"there is no process {process_id!r}")
        return process

    def _running_init(self) -> Process:
        init = self._processes.get(INIT)
        if init is None or init.status is not None:
            raise RpcError(_FAILED_PRECONDITION, "the container is not running")
        return init

    def _reap(self) -> None:
        """Collects every child that ended: the container's, and orphans that the kernel gave to process 1."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for process in list(self._processes.values()):
                if process.pid == pid and process.status is None:
                    process.oom_killed = self._sandbox.oom_killed()
                    self._streams.ended(process, status)


def _failure(error: LaunchError) -> tether_pb2.StartResponse:
    failure = tether_pb2.LaunchFailure(step=int(error.step), errno=error.number, message=error.message)  # type: ignore[arg-type]
    return tether_pb2.StartResponse(failure=failure)


def _output(piece: Piece) -> bytes:
    """A piece as the message that carries it; filled in place, which copies the data once less."""
    message = tether_pb2.FollowResponse()
    output = message.output
    output.offset, output.data, output.time_unix_ns = piece.offset, piece.data, piece.time_ns
    output.stream = tether_pb2.STREAM_STDERR if piece.stream == container.STDERR else tether_pb2.STREAM_STDOUT
    return message.SerializeToString()
