"""Calls to one agent over a channel that may break at any time.

A task owns the channel: it connects, opens a session, and after any loss does so again and repeats what had no answer.
All calls of tether.v1 can be repeated, so callers see an answer, a refusal, or a time-out, and nothing in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self, TypeVar

from google.protobuf.message import DecodeError, Message

from portlayer.agent import claims
from portlayer.agent.errors import AgentError, AgentProtocolError, AgentRpcError, AgentUnavailableError
from portlayer.agent.follow import Follow
from portlayer.errors import PortLayerError
from tether.v1 import tether_pb2
from tether.wire import DataReceived, Event, ResponseReceived, Role, Session, SessionLost, SessionOpened

SERVICE = "tether.v1.Tether"
PROTOCOL = 1
# A handshake without answer is repeated so often: a byte of it may have been lost.
_HANDSHAKE_S = 2.0
# A line silent for so long with calls on it is probed, and after as long again taken for dead.
_SILENCE_S = 20.0
_RETRY_S = (0.02, 1.0)
_READ_BYTES = 256 * 1024
_DEFAULT_TIMEOUT_S = 30.0
# More than an honest guest leaves unread, even a paused one: input of many processes at most.
_MAX_UNSENT_BYTES = 32 << 20

Channel = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_M = TypeVar("_M", bound=Message)
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Call:
    """A call that has no answer yet; `stream_id` is None while no session carries it."""

    method: str
    payload: bytes
    answer: asyncio.Future[bytes]
    stream_id: int | None = None


class AgentClient:
    """See the module's docstring. Use as an async context manager."""

    def __init__(self, open_channel: Callable[[], Awaitable[Channel]]) -> None:
        self._open_channel = open_channel
        self._session = Session(Role.HOST)
        self._writer: asyncio.StreamWriter | None = None
        self._calls: set[_Call] = set()
        self._follows: dict[Follow, int | None] = {}
        self._by_stream: dict[int, _Call | Follow] = {}
        self._task: asyncio.Task[None] | None = None
        self._failure: AgentError | None = None
        self._opened = asyncio.Event()
        # Set while no channel is open: all that the last one brought has been taken in.
        self.disconnected = asyncio.Event()

    def open(self) -> None:
        """Begins to reach for the agent, in the background."""
        self._task = asyncio.create_task(self._run(), name="agent channel")

    async def __aenter__(self) -> Self:
        self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Lets go of the channel; calls in flight end with AgentUnavailableError."""
        self._fail(AgentUnavailableError("the connection to the agent was closed"))
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def wait_open(self, timeout_s: float) -> None:
        """Returns when the agent has been reached once: it listens. Raises AgentUnavailableError."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._opened.wait()
        except TimeoutError as error:
            raise AgentUnavailableError(f"the agent was not reached within {timeout_s:g} s") from error

    # --- the guest API

    async def hello(self, *, timeout_s: float) -> tether_pb2.HelloResponse:
        """Waits until the agent answers, through its boot if need be."""
        answer = await self._call("Hello", tether_pb2.HelloRequest(), tether_pb2.HelloResponse, timeout_s)
        if answer.protocol != PROTOCOL:
            raise AgentProtocolError(f"the agent speaks protocol {answer.protocol}, this host {PROTOCOL}")
        return answer

    async def start(
        self, request: tether_pb2.StartRequest, *, timeout_s: float = _DEFAULT_TIMEOUT_S
    ) -> tether_pb2.StartResponse:
        """Launches the container's first process."""
        return await self._call("Start", request, tether_pb2.StartResponse, timeout_s)

    async def reset(self, *, timeout_s: float = _DEFAULT_TIMEOUT_S) -> None:
        """Ends a rehearsal."""
        await self._call("Reset", tether_pb2.ResetRequest(), tether_pb2.ResetResponse, timeout_s)

    async def freeze(self, request_id: str, *, timeout_s: float = _DEFAULT_TIMEOUT_S) -> None:
        """Has the VM freeze itself a moment after this returns, as a template on VMware; see the guest API."""
        await self._call(
            "Freeze", tether_pb2.FreezeRequest(request_id=request_id), tether_pb2.FreezeResponse, timeout_s
        )

    async def exec(
        self, request: tether_pb2.ExecRequest, *, timeout_s: float = _DEFAULT_TIMEOUT_S
    ) -> tether_pb2.StartResponse:
        """Launches a further process."""
        return await self._call("Exec", request, tether_pb2.StartResponse, timeout_s)

    async def write_input(self, request: tether_pb2.WriteInputRequest) -> int:
        """Appends to a process's stdin; returns when the agent has room for it, however long that takes."""
        response = await self._call("WriteInput", request, tether_pb2.WriteInputResponse, None)
        return response.accepted_offset

    async def signal(self, request: tether_pb2.SignalRequest, *, timeout_s: float = _DEFAULT_TIMEOUT_S) -> None:
        """Signals a process."""
        await self._call("Signal", request, tether_pb2.SignalResponse, timeout_s)

    async def stop(self, request: tether_pb2.StopRequest, *, timeout_s: float = _DEFAULT_TIMEOUT_S) -> None:
        """Begins to stop init; the end shows in its Follow."""
        await self._call("Stop", request, tether_pb2.StopResponse, timeout_s)

    async def resize(self, request: tether_pb2.ResizeRequest, *, timeout_s: float = _DEFAULT_TIMEOUT_S) -> None:
        """Sets a terminal's size."""
        await self._call("Resize", request, tether_pb2.ResizeResponse, timeout_s)

    async def processes(self, *, timeout_s: float = _DEFAULT_TIMEOUT_S) -> tether_pb2.ProcessesResponse:
        """Lists the container's processes."""
        request = tether_pb2.ProcessesRequest()
        return claims.processes(await self._call("Processes", request, tether_pb2.ProcessesResponse, timeout_s))

    async def stats(self, *, timeout_s: float = _DEFAULT_TIMEOUT_S) -> tether_pb2.StatsResponse:
        """Reports resource usage."""
        return await self._call("Stats", tether_pb2.StatsRequest(), tether_pb2.StatsResponse, timeout_s)

    async def power_off(self, *, timeout_s: float = _DEFAULT_TIMEOUT_S) -> None:
        """Asks for an orderly power-off."""
        await self._call("PowerOff", tether_pb2.PowerOffRequest(), tether_pb2.PowerOffResponse, timeout_s)

    def follow(self, process_id: str, offset: int) -> Follow:
        """Output from `offset`, then the exit."""
        follow = Follow(process_id, offset, self._detach)
        if self._failure is not None:
            follow.fail(self._failure)
        else:
            self._follows[follow] = None
            self._issue_follow(follow)
        return follow

    # --- calls

    async def _call(self, method: str, request: Message, answer_type: type[_M], timeout_s: float | None) -> _M:
        if self._failure is not None:
            raise self._failure
        call = _Call(method, request.SerializeToString(), asyncio.get_running_loop().create_future())
        self._calls.add(call)
        try:
            self._issue(call)
            async with asyncio.timeout(timeout_s):
                payload = await call.answer
        except TimeoutError as error:
            if call.stream_id is not None:
                self._reconnect("an answer is overdue")
            raise AgentUnavailableError(f"the agent did not answer {method} within {timeout_s:g} s") from error
        finally:
            self._calls.discard(call)
            if call.stream_id is not None:
                self._by_stream.pop(call.stream_id, None)
        try:
            return answer_type.FromString(payload)
        except DecodeError as error:
            raise AgentProtocolError(f"the answer to {method} is not readable: {error}") from error

    def _issue(self, call: _Call) -> None:
        if self._session.is_open:
            call.stream_id = self._session.send_request(SERVICE, call.method, call.payload)
            self._by_stream[call.stream_id] = call
            self._flush()

    def _issue_follow(self, follow: Follow) -> None:
        if not self._session.is_open:
            return
        stream_id = self._session.send_request(SERVICE, "Follow", follow.request(), more=True)
        self._follows[follow] = stream_id
        self._by_stream[stream_id] = follow

        def send(payload: bytes, end: bool) -> None:
            self._session.send_data(stream_id, payload, end=end)
            self._flush()

        follow.attach(send)
        self._flush()

    def _detach(self, follow: Follow) -> None:
        stream_id = self._follows.pop(follow, None)
        if stream_id is not None:
            self._by_stream.pop(stream_id, None)

    # --- the channel

    async def _run(self) -> None:
        """Keeps a session open for as long as the client lives."""
        try:
            delay = _RETRY_S[0]
            while True:
                try:
                    reader, self._writer = await self._open_channel()
                except (PortLayerError, OSError) as error:
                    _log.debug("no channel to the agent: %s", error)
                else:
                    self.disconnected.clear()
                    if await self._converse(reader, self._writer):
                        delay = _RETRY_S[0]
                self.disconnected.set()
                await asyncio.sleep(delay)
                delay = min(delay * 2, _RETRY_S[1])
        except AgentProtocolError as error:
            _log.warning("a guest misbehaves: %s", error)
            self._fail(error)
        except Exception as error:
            _log.exception("talking to an agent")
            self._fail(AgentUnavailableError(f"talking to the agent failed: {error}"))

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Speaks over one channel until it ends; returns whether a session came about."""
        opened = False
        probed = False
        try:
            self._session.connect()
            self._flush()
            while True:
                patience = _SILENCE_S if self._session.is_open else _HANDSHAKE_S
                try:
                    async with asyncio.timeout(patience):
                        data = await reader.read(_READ_BYTES)
                except TimeoutError:
                    probed = self._break_silence(probed)
                    continue
                if not data:
                    return opened
                probed = False
                for event in self._session.receive_data(data):
                    opened = opened or isinstance(event, SessionOpened)
                    self._handle(event)
                self._flush()
        except (ConnectionError, BrokenPipeError):
            return opened
        finally:
            self._forget_session()
            self._writer = None
            writer.close()

    def _break_silence(self, probed: bool) -> bool:
        """Nothing was heard for long: repeat the handshake, probe a line that has calls on it, give a dead one up."""
        if not self._session.is_open or (probed and self._by_stream):
            self._reconnect("the agent is silent")
            return False
        if self._by_stream:
            self._session.send_request(SERVICE, "Hello", b"")
            self._flush()
        return True

    def _handle(self, event: Event) -> None:
        if isinstance(event, SessionOpened):
            self._opened.set()
            self._repeat_all()
        elif isinstance(event, SessionLost):
            _log.info("session with an agent lost: %s", event.reason)
            self._forget_session()
            self._session.connect()
        elif isinstance(event, DataReceived):
            target = self._by_stream.get(event.stream_id)
            if isinstance(target, Follow) and event.payload:
                target.receive(event.payload)
        elif isinstance(event, ResponseReceived):
            self._answered(event)

    def _answered(self, event: ResponseReceived) -> None:
        target = self._by_stream.pop(event.stream_id, None)
        if isinstance(target, Follow):
            target.answered(event.code, event.message)
        elif target is not None and not target.answer.done():
            if event.code:
                target.answer.set_exception(AgentRpcError(target.method, event.code, claims.printable(event.message)))
            else:
                target.answer.set_result(event.payload)

    def _repeat_all(self) -> None:
        for call in list(self._calls):
            if not call.answer.done():
                self._issue(call)
        for follow in list(self._follows):
            if follow.live:
                self._issue_follow(follow)

    def _reconnect(self, reason: str) -> None:
        if self._session.is_open:
            _log.info("new session with an agent: %s", reason)
        if self._writer is not None:
            self._forget_session()
            self._session.connect()
            self._flush()

    def _forget_session(self) -> None:
        self._session = Session(Role.HOST)
        self._by_stream.clear()
        for call in self._calls:
            call.stream_id = None
        for follow in self._follows:
            self._follows[follow] = None
            follow.lose()

    def _flush(self) -> None:
        data = self._session.data_to_send()
        if data and self._writer is not None:
            self._writer.write(data)
            if self._writer.transport.get_write_buffer_size() > _MAX_UNSENT_BYTES:
                _log.warning("a guest does not read what it is sent: its channel is opened anew")
                self._writer.transport.abort()

    def _fail(self, error: AgentError) -> None:
        self._failure = self._failure or error
        for call in self._calls:
            if not call.answer.done():
                call.answer.set_exception(self._failure)
        for follow in list(self._follows):
            follow.fail(self._failure)
