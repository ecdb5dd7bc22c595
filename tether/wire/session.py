"""A session: link layer and calls over one byte stream, sans-IO.

Bytes that arrive go into `receive_data`, which returns events; what is to be sent comes out of `data_to_send`. The host
calls, the guest answers. A session ends when anything is lost or malformed on the line, or when either side begins
anew; then all calls of it are forgotten and the host may `connect` again. Nothing the peer sends raises here.
"""

from __future__ import annotations

import secrets
from enum import Enum, auto

from google.protobuf.message import DecodeError

from tether.v1 import ttrpc_pb2
from tether.wire import framing, link
from tether.wire.calls import TRANSITIONS, Action, State
from tether.wire.errors import LocalProtocolError, RemoteProtocolError
from tether.wire.events import (
    DataReceived,
    Event,
    RequestReceived,
    ResponseReceived,
    SessionLost,
    SessionOpened,
)
from tether.wire.framing import CLOSED, NO_DATA, OPEN, MessageType

# Longest payload of one message.
MAX_PAYLOAD = 256 * 1024
RESOURCE_EXHAUSTED = 8
_MAX_STREAM_ID = 0xFFFF_FFFF


class Role(Enum):
    """Which end of the line this is."""

    HOST = auto()
    GUEST = auto()


class Session:
    """One end of the line. `is_open` is true between SessionOpened and SessionLost."""

    def __init__(self, role: Role, *, max_streams: int = 256) -> None:
        self._role = role
        self._max_streams = max_streams
        self._decoder = link.Decoder()
        self._output: list[bytes] = []
        self._calls: dict[int, State] = {}
        self._session = 0
        self._sent = 0
        self._received = 0
        self._last_stream_id = -1
        self.is_open = False
        if role is Role.GUEST:
            self._output.append(link.encode(link.Frame(link.Kind.LISTENING, 0)))

    # --- the host's side

    def connect(self) -> None:
        """Begins a new session; whatever was in flight is gone. SessionOpened tells when the guest has agreed."""
        self._require(self._role is Role.HOST, "only the host connects")
        self._reset(secrets.randbits(64) or 1)
        self._output = [link.encode(link.Frame(link.Kind.HELLO, self._session))]

    def send_request(
        self, service: str, method: str, payload: bytes, *, more: bool = False, timeout_ns: int = 0
    ) -> int:
        """Calls a method; with `more`, send_data continues the request. Returns the stream id of the call."""
        self._require(self._role is Role.HOST, "only the host calls")
        self._require(self.is_open, "no session is open")
        self._require(len(self._calls) < self._max_streams, "too many calls in flight")
        self._check_payload(payload)
        request = ttrpc_pb2.Request(service=service, method=method, payload=payload, timeout_nano=timeout_ns)
        self._last_stream_id += 2
        stream_id = self._last_stream_id
        self._require(stream_id <= _MAX_STREAM_ID, "stream ids are used up: connect again")
        self._calls[stream_id] = State.OPEN if more else State.HALF_LOCAL
        flags = OPEN if more else CLOSED
        self._send(framing.encode(stream_id, MessageType.REQUEST, request.SerializeToString(), flags))
        return stream_id

    # --- both sides

    def send_data(self, stream_id: int, payload: bytes, *, end: bool = False) -> None:
        """Sends a further message of a streaming call; with `end` the last one (an empty one only ends)."""
        self._check_payload(payload)
        self._move_local(stream_id, Action.SEND_END if end else Action.SEND_DATA)
        flags = (CLOSED if end else 0) | (NO_DATA if end and not payload else 0)
        self._send(framing.encode(stream_id, MessageType.DATA, payload, flags))

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """Takes what arrived on the line and tells what it means."""
        events: list[Event] = []
        for frame in self._decoder.receive(data):
            try:
                if isinstance(frame, link.Damage):
                    self._receive_damage()
                else:
                    self._receive_frame(frame, events)
            except (RemoteProtocolError, DecodeError) as error:
                self._lose(f"the peer broke the protocol: {error}", events)
        return events

    def data_to_send(self) -> bytes:
        """All that is to go out, in order; the caller now owns it."""
        data = b"".join(self._output)
        self._output.clear()
        return data

    # --- the guest's side

    def send_response(self, stream_id: int, payload: bytes = b"", *, code: int = 0, message: str = "") -> None:
        """Ends a call with its answer, or with an error (`code` not 0)."""
        self._require(self._role is Role.GUEST, "only the guest answers")
        self._check_payload(payload)
        self._move_local(stream_id, Action.SEND_RESPONSE)
        self._respond(stream_id, payload, code, message)

    # --- frames

    def _receive_frame(self, frame: link.Frame, events: list[Event]) -> None:
        if self._role is Role.GUEST and frame.kind is link.Kind.HELLO and frame.session:
            self._accept(frame.session, events)
        elif self._role is Role.HOST and frame.kind is link.Kind.LISTENING:
            self._guest_listens(events)
        elif frame.session != self._session or not self._session:
            self._stray(frame)
        elif frame.kind is link.Kind.LOST:
            self._end(events, "the peer lost the session")
        elif self._role is Role.HOST and frame.kind is link.Kind.HELLO_ACK:
            if not self.is_open:
                self.is_open = True
                events.append(SessionOpened())
        elif frame.kind is link.Kind.DATA and self.is_open:
            self._receive_payload(frame, events)

    def _receive_damage(self) -> None:
        """Noise before a session is normal on a serial line; within one something is missing."""
        if self.is_open:
            raise RemoteProtocolError("damaged or missing bytes on the line")

    def _accept(self, session: int, events: list[Event]) -> None:
        """A host's HELLO: the newest wins, a repeated one is acknowledged again."""
        if session != self._session or not self.is_open:
            if self.is_open:
                self._end(events, "the host began a new session")
            self._reset(session)
            self._output.clear()
            self.is_open = True
            events.append(SessionOpened())
        self._output.append(link.encode(link.Frame(link.Kind.HELLO_ACK, session)))

    def _guest_listens(self, events: list[Event]) -> None:
        """The agent (re)started: an open session is gone, a HELLO on its way was lost."""
        if self.is_open:
            self._end(events, "the agent started anew")
        elif self._session:
            self._output.append(link.encode(link.Frame(link.Kind.HELLO, self._session)))

    def _stray(self, frame: link.Frame) -> None:
        """A frame of a session that this end does not know: the guest says so, once for each DATA it comes with."""
        if self._role is Role.GUEST and frame.kind is link.Kind.DATA:
            self._output.append(link.encode(link.Frame(link.Kind.LOST, frame.session)))

    def _receive_payload(self, frame: link.Frame, events: list[Event]) -> None:
        if frame.sequence != self._received & 0xFFFF:
            raise RemoteProtocolError("a frame is missing")
        self._received += 1
        stream_id, message_type, flags, message = framing.decode(frame.payload)
        if message_type is MessageType.REQUEST:
            self._receive_request(stream_id, flags, message, events)
        elif message_type is MessageType.DATA:
            self._receive_message(stream_id, flags, message, events)
        else:
            self._receive_response(stream_id, message, events)

    def _receive_request(self, stream_id: int, flags: int, message: bytes, events: list[Event]) -> None:
        if self._role is Role.HOST:
            raise RemoteProtocolError("a guest does not call")
        if stream_id % 2 == 0 or stream_id <= self._last_stream_id:
            raise RemoteProtocolError(f"stream id {stream_id} is not new")
        self._last_stream_id = stream_id
        request = ttrpc_pb2.Request.FromString(message)
        if len(self._calls) >= self._max_streams:
            self._respond(stream_id, b"", RESOURCE_EXHAUSTED, "too many calls in flight")
            return
        more = not flags & CLOSED and bool(flags & OPEN)
        self._calls[stream_id] = State.OPEN if more else State.HALF_REMOTE
        events.append(
            RequestReceived(stream_id, request.service, request.method, request.payload, request.timeout_nano, more)
        )

    def _receive_message(self, stream_id: int, flags: int, message: bytes, events: list[Event]) -> None:
        end = bool(flags & CLOSED)
        if self._move_remote(stream_id, Action.RECEIVE_END if end else Action.RECEIVE_DATA):
            events.append(DataReceived(stream_id, message, end))

    def _receive_response(self, stream_id: int, message: bytes, events: list[Event]) -> None:
        if self._role is Role.GUEST:
            raise RemoteProtocolError("a host does not answer")
        response = ttrpc_pb2.Response.FromString(message)
        if self._move_remote(stream_id, Action.RECEIVE_RESPONSE):
            status = response.status
            events.append(ResponseReceived(stream_id, status.code, status.message, response.payload))

    # --- state

    def _respond(self, stream_id: int, payload: bytes, code: int, message: str) -> None:
        response = ttrpc_pb2.Response(payload=payload)
        if code:
            response.status.code = code
            response.status.message = message[:4096]
        self._send(framing.encode(stream_id, MessageType.RESPONSE, response.SerializeToString()))

    def _send(self, ttrpc_frame: bytes) -> None:
        self._output.append(link.encode(link.Frame(link.Kind.DATA, self._session, self._sent, ttrpc_frame)))
        self._sent += 1

    def _move_local(self, stream_id: int, action: Action) -> None:
        self._require(self.is_open, "no session is open")
        state = TRANSITIONS.get((self._calls.get(stream_id, State.CLOSED), action))
        if state is None:
            raise LocalProtocolError(f"{action.name} is not allowed on call {stream_id}")
        self._set(stream_id, state)

    def _move_remote(self, stream_id: int, action: Action) -> bool:
        """Moves a call on for the peer; False when we have ended that call already, so that the frame is stale."""
        current = self._calls.get(stream_id)
        if current is None:
            if stream_id % 2 == 0 or stream_id > self._last_stream_id:
                raise RemoteProtocolError(f"no call has stream id {stream_id}")
            return False
        state = TRANSITIONS.get((current, action))
        if state is None:
            raise RemoteProtocolError(f"{action.name} is not allowed on call {stream_id}")
        self._set(stream_id, state)
        return True

    def _set(self, stream_id: int, state: State) -> None:
        if state is State.CLOSED:
            del self._calls[stream_id]
        else:
            self._calls[stream_id] = state

    def _reset(self, session: int) -> None:
        self._session = session
        self._calls.clear()
        self._sent = self._received = 0
        self._last_stream_id = -1
        self.is_open = False

    def _lose(self, reason: str, events: list[Event]) -> None:
        """This end found the session broken: tell the peer, forget it."""
        self._output = [link.encode(link.Frame(link.Kind.LOST, self._session))]
        self._end(events, reason)

    def _end(self, events: list[Event], reason: str) -> None:
        was_connecting = self._session != 0
        self._reset(0)
        if self._role is Role.GUEST:
            # Calls that came with the same bytes as their session's end: nobody can be answered any more, and in the
            # next session their stream ids stand for others.
            events[:] = [event for event in events if isinstance(event, SessionOpened | SessionLost)]
        if was_connecting:
            events.append(SessionLost(reason))

    @staticmethod
    def _require(condition: bool, message: str) -> None:
        if not condition:
            raise LocalProtocolError(message)

    @staticmethod
    def _check_payload(payload: bytes) -> None:
        if len(payload) > MAX_PAYLOAD:
            raise LocalProtocolError(f"a message of {len(payload)} bytes is longer than {MAX_PAYLOAD}")
