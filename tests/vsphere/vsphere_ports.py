"""Ports of this machine that a test comes back to."""

from __future__ import annotations

import socket

from vsphere_simulator import HOST


def held_port() -> socket.socket:
    """A port that nobody else is given until the socket is closed.

    Whoever listens with SO_REUSEADDR, as servers do, may do so there as often as wanted; who connects meanwhile is
    refused.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((HOST, 0))
    return held
