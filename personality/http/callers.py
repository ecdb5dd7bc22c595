"""Who is at the other end of a connection, in words for administrators. Nothing is allowed or refused by it."""

from __future__ import annotations

import pwd
import socket
import struct

# struct ucred, unix(7): process, user, group; -1 for a user that this user namespace does not have.
_CREDENTIALS = struct.Struct("iii")
_MAX_NAME = 256


def user_of(sock: socket.socket) -> str:
    """The name of the user whose process connected this Unix socket, or its number where it has no name here."""
    try:
        _, user, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    except OSError:  # the connection is gone already
        return ""
    try:
        return printable(pwd.getpwuid(user).pw_name)
    except (KeyError, OverflowError):
        return f"user {user}"


def printable(name: str) -> str:
    """Without control characters, and not longer than the port layer takes."""
    return "".join(letter for letter in name if letter.isprintable())[:_MAX_NAME]
