"""The line to the host over AF_VSOCK: the agent listens, and talks to whoever connected last.

Unlike a virtio-serial port, a vsock port of the guest can be reached from the container's own processes and by every
user of the host. So only the host's privileged processes are listened to: they alone may bind such a port.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from tether.loop import Loop

PORT = 7663
_HOST_CID = 2
_LAST_PRIVILEGED_PORT = 1023


def listen() -> socket.socket:
    """A listening socket. Made before any transport's driver is there, it lets no early connection be refused."""
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.bind((socket.VMADDR_CID_ANY, PORT))
    listener.listen(8)
    return listener


def is_host(address: tuple[int, int]) -> bool:
    """Whether a peer is a privileged process of the host."""
    cid, port = address
    return cid == _HOST_CID and port <= _LAST_PRIVILEGED_PORT


def serve(
    loop: Loop,
    listener: socket.socket,
    attach: Callable[[int], None],
    trusted: Callable[[tuple[int, int]], bool] = is_host,
) -> None:
    """Hands each trusted connection's descriptor to `attach`, which lets go of the one before; closes all others."""
    listener.setblocking(False)

    def accept() -> None:
        try:
            connection, address = listener.accept()
        except OSError:
            return  # it was given up before it was taken
        if trusted(address):
            attach(connection.detach())
        else:
            connection.close()

    loop.watch(listener.fileno(), accept)
