"""The life of one call, as a table.

A call is two one-way streams of messages, from the caller (host) to the callee (guest) and back. Two rules give the
whole table: *who has said "no more" may say nothing further*, and *the response ends the call for both*. A call's state
at one end is therefore which of the two directions are still open:

    OPEN         both
    HALF_LOCAL   we have ended ours, theirs goes on
    HALF_REMOTE  they have ended theirs, ours goes on
    CLOSED       over; never left

What is not in the table is forbidden: LocalProtocolError if we try it, RemoteProtocolError if the peer does.
"""

from __future__ import annotations

from enum import Enum, auto


class State(Enum):
    """Which directions of a call are open."""

    OPEN = auto()
    HALF_LOCAL = auto()
    HALF_REMOTE = auto()
    CLOSED = auto()


class Action(Enum):
    """What moves a call on."""

    SEND_DATA = auto()
    SEND_END = auto()
    SEND_RESPONSE = auto()
    RECEIVE_DATA = auto()
    RECEIVE_END = auto()
    RECEIVE_RESPONSE = auto()


TRANSITIONS: dict[tuple[State, Action], State] = {
    (State.OPEN, Action.SEND_DATA): State.OPEN,
    (State.OPEN, Action.SEND_END): State.HALF_LOCAL,
    (State.OPEN, Action.SEND_RESPONSE): State.CLOSED,
    (State.OPEN, Action.RECEIVE_DATA): State.OPEN,
    (State.OPEN, Action.RECEIVE_END): State.HALF_REMOTE,
    (State.OPEN, Action.RECEIVE_RESPONSE): State.CLOSED,
    (State.HALF_LOCAL, Action.RECEIVE_DATA): State.HALF_LOCAL,
    (State.HALF_LOCAL, Action.RECEIVE_END): State.CLOSED,
    (State.HALF_LOCAL, Action.RECEIVE_RESPONSE): State.CLOSED,
    (State.HALF_REMOTE, Action.SEND_DATA): State.HALF_REMOTE,
    (State.HALF_REMOTE, Action.SEND_END): State.CLOSED,
    (State.HALF_REMOTE, Action.SEND_RESPONSE): State.CLOSED,
}
