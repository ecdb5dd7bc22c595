"""A process's output and exit as one unbroken stream, whatever happens to the line below."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Self

from google.protobuf.message import DecodeError

from portlayer.agent.errors import AgentError, AgentProtocolError, AgentRpcError
from tether.v1 import tether_pb2

MAX_CHUNK = 192 * 1024
# An honest agent sends at most its journal (1 MiB) beyond what was acknowledged.
_MAX_BUFFERED = 4 << 20

# As the agent counts what a piece of output takes of its journal; told when a quarter of that is free again.
_PIECE_COST = 256
_ACKNOWLEDGE_COST = 256 * 1024

Send = Callable[[bytes, bool], None]


class Follow:
    """Async iterator of tether_pb2.FollowResponse: outputs without gap or repetition, then `exited` as the last.

    Raises AgentRpcError when the agent refuses, AgentProtocolError when it breaks its promises.
    """

    def __init__(self, process_id: str, offset: int, detach: Callable[[Follow], None]) -> None:
        self.process_id = process_id
        self.offset = offset
        self._acknowledged = offset
        self._unacknowledged_cost = 0
        self._exit_recorded = False
        self._exited = False
        self._closing = False
        self._items: deque[tether_pb2.FollowResponse] = deque()
        self._buffered = 0
        self._changed = asyncio.Event()
        self._error: AgentError | None = None
        self._send: Send | None = None
        self._detach = detach

    def acknowledge(self, offset: int, *, exit_recorded: bool = False) -> None:
        """All below the offset is durable here, and with `exit_recorded` the exit too: the agent may forget it.

        The agent is told now and then: each message costs the guest more than the output that it frees.
        """
        self._unacknowledged_cost += max(0, offset - self._acknowledged) + _PIECE_COST
        self._acknowledged = max(self._acknowledged, offset)
        self._exit_recorded = self._exit_recorded or exit_recorded
        if exit_recorded or self._unacknowledged_cost >= _ACKNOWLEDGE_COST:
            self._send_acknowledgement()

    async def aclose(self) -> None:
        """Ends the call; the agent keeps what was not acknowledged.

        A recorded exit is told the agent even if the line is down just now: the call goes on by itself until then.
        """
        self._closing = True
        if self._send is not None:
            self._send(b"", True)
            self._send = None
        if not self._exit_recorded:
            self._detach(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tether_pb2.FollowResponse:
        while not self._items:
            if self._error is not None:
                raise self._error
            if self._exited:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        item = self._items.popleft()
        self._buffered -= len(item.output.data)
        return item

    # --- for the client

    @property
    def live(self) -> bool:
        """Whether a new session must ask for it again."""
        return self._error is None

    def request(self) -> bytes:
        """The call's first message: go on where we are."""
        return tether_pb2.FollowRequest(process_id=self.process_id, offset=self.offset).SerializeToString()

    def attach(self, send: Send) -> None:
        """The call is on its way; `send` carries further messages (payload, end)."""
        self._send = send
        if self._acknowledged or self._exit_recorded:
            self._send_acknowledgement()
        if self._closing:
            send(b"", True)
            self._send = None

    def lose(self) -> None:
        """The session is gone; a later `attach` follows."""
        self._send = None

    def receive(self, payload: bytes) -> None:
        """A message of the agent; AgentProtocolError when it cannot be."""
        try:
            message = tether_pb2.FollowResponse.FromString(payload)
        except DecodeError as error:
            raise AgentProtocolError(f"output of {self.process_id} is not readable: {error}") from error
        if message.HasField("exited"):
            self._receive_exit(message)
        else:
            self._receive_output(message)

    def answered(self, code: int, message: str) -> None:
        """The agent ended the call."""
        self._send = None
        if not self._exited:
            self.fail(AgentRpcError(f"Follow of {self.process_id}", code, message))
        self._detach(self)

    def fail(self, error: AgentError) -> None:
        self._error = self._error or error
        self._changed.set()

    def _receive_output(self, message: tether_pb2.FollowResponse) -> None:
        output = message.output
        if output.offset != self.offset or not 0 < len(output.data) <= MAX_CHUNK or self._exited:
            raise AgentProtocolError(
                f"output of {self.process_id}: {len(output.data)} bytes at {output.offset}, expected {self.offset}"
            )
        self.offset += len(output.data)
        self._buffered += len(output.data)
        if self._buffered > _MAX_BUFFERED:
            raise AgentProtocolError(f"output of {self.process_id} is sent faster than it is acknowledged")
        self._deliver(message)

    def _receive_exit(self, message: tether_pb2.FollowResponse) -> None:
        if message.exited.end_offset != self.offset or message.exited.exit_code > 255:
            raise AgentProtocolError(f"exit of {self.process_id} does not fit its output")
        if self._exited:  # told again after a new session
            self._send_acknowledgement()
            return
        self._exited = True
        self._deliver(message)

    def _deliver(self, message: tether_pb2.FollowResponse) -> None:
        self._items.append(message)
        self._changed.set()

    def _send_acknowledgement(self) -> None:
        if self._send is not None:
            self._unacknowledged_cost = 0
            request = tether_pb2.FollowRequest(offset=self._acknowledged, exit_recorded=self._exit_recorded)
            self._send(request.SerializeToString(), False)
