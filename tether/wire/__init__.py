"""The protocol between host and guest, sans-IO: shared by the agent and the port layer. See docs/tether-protocol.md."""

from tether.wire.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from tether.wire.events import (
    DataReceived,
    Event,
    RequestReceived,
    ResponseReceived,
    SessionLost,
    SessionOpened,
)
from tether.wire.session import MAX_PAYLOAD, Role, Session

__all__ = [
    "MAX_PAYLOAD",
    "DataReceived",
    "Event",
    "LocalProtocolError",
    "ProtocolError",
    "RemoteProtocolError",
    "RequestReceived",
    "ResponseReceived",
    "Role",
    "Session",
    "SessionLost",
    "SessionOpened",
]
