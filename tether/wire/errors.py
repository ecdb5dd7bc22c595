"""Errors of the guest protocol.

    ProtocolError
    |- LocalProtocolError    this side used the API wrongly: a bug here
    `- RemoteProtocolError   the peer broke the protocol; the session with it is over

RemoteProtocolError never leaves this package: it ends the session and becomes the reason of a SessionLost event.
"""

from __future__ import annotations


class ProtocolError(Exception):
    """Root; never raised itself."""


class LocalProtocolError(ProtocolError):
    """A call that the state does not allow, or an argument out of range."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol does not allow."""
