"""What a Session tells its user: one frozen dataclass for each thing that can happen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """Both ends agree on a new session. All calls of an earlier one are gone."""


@dataclass(frozen=True, slots=True)
class SessionLost:
    """The session is over; calls in flight have no answer and may or may not have been carried out."""

    reason: str


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """A call (guest only). With `more`, DataReceived events follow until one has `end`."""

    stream_id: int
    service: str
    method: str
    payload: bytes
    timeout_ns: int
    more: bool


@dataclass(frozen=True, slots=True)
class DataReceived:
    """A further message of a streaming call; with `end` the peer sends no more (the payload may then be empty)."""

    stream_id: int
    payload: bytes
    end: bool


@dataclass(frozen=True, slots=True)
class ResponseReceived:
    """The end of a call (host only). `code` is a google.rpc code, 0 for success."""

    stream_id: int
    code: int
    message: str
    payload: bytes


Event = SessionOpened | SessionLost | RequestReceived | DataReceived | ResponseReceived
