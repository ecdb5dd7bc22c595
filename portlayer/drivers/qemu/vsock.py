"""Agents over AF_VSOCK by way of the host's vhost-vsock: whether it works, addresses of guests, connections.

virtio-serial stays the default even where this works: it needs no privileges, no other user of the host can reach it,
and a machine that is frozen as a template cannot hold a vhost device. vsock moves bulk output with less work for QEMU,
so it is there for the asking (`--channel vsock`, or `auto`: wherever it works).

The kernel keeps a guest's address (CID) unique on the whole host, for as long as the descriptor lives on which it was
set. That descriptor is set up here and then handed to QEMU: no address is ever chosen twice, whoever else runs VMs.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import secrets
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from portlayer.errors import DriverError, InvalidArgumentError

AUTO, VIRTIO, VSOCK = "auto", "virtio", "vsock"
CHANNELS = (AUTO, VIRTIO, VSOCK)
AGENT_PORT = 7663
_DEVICE = "/dev/vhost-vsock"
_SET_GUEST_CID = 0x4008AF60  # ioctl VHOST_VSOCK_SET_GUEST_CID
_FIRST_CID, _LAST_CID = 3, 0xFFFF_FFFE
_LAST_PRIVILEGED_PORT = 1023
_ATTEMPTS = 64


@dataclass(frozen=True)
class Choice:
    """The channel that new machines get, and in a sentence why."""

    channel: str
    reason: str


@dataclass(frozen=True)
class Address:
    """A guest's address and the open device that holds it."""

    cid: int
    fd: int


def choose(wanted: str) -> Choice:
    """The channel to use. Raises DriverError when vsock is asked for and does not work."""
    if wanted not in CHANNELS:
        raise InvalidArgumentError(f"no channel {wanted!r}: use one of {', '.join(CHANNELS)}")
    if wanted == VIRTIO:
        return Choice(VIRTIO, "virtio-serial")
    obstacle = probe()
    if not obstacle:
        return Choice(VSOCK, "vhost-vsock works")
    if wanted == VSOCK:
        raise DriverError(f"agents cannot be reached over vsock here: {obstacle}")
    return Choice(VIRTIO, f"virtio-serial, as vsock does not work: {obstacle}")


def probe() -> str:
    """Why vsock does not work here; empty when it does. Everything is tried that a real machine needs."""
    what = _DEVICE
    try:
        with reserve(secrets.token_hex(4)):
            what = "a privileged vsock port"
            with _client():
                return ""
    except OSError as error:
        return f"{what}: {error.strerror or error}"


@contextlib.contextmanager
def reserve(machine_id: str) -> Iterator[Address]:
    """An address that no other guest of this host has, until all copies of the descriptor are closed."""
    fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield Address(_claim(fd, int(machine_id[:8], 16)), fd)
    finally:
        os.close(fd)


async def connect(cid: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A byte stream to a guest's agent. One that still boots lets a connection wait; OSError after some seconds."""
    return await open_stream(_client(), (cid, AGENT_PORT))


async def open_stream(client: socket.socket, address: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connects; the event loops' own way knows nothing but internet and Unix addresses. Closes `client` on failure."""
    try:
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            client.connect(address)
        await _writable(client)
        if number := client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(number, os.strerror(number))
        return await asyncio.open_connection(sock=client)
    except BaseException:
        client.close()
        raise


async def _writable(client: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(client, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(client)


def _claim(fd: int, seed: int) -> int:
    for attempt in range(_ATTEMPTS):
        cid = _FIRST_CID + (seed + attempt) % (_LAST_CID - _FIRST_CID + 1)
        try:
            fcntl.ioctl(fd, _SET_GUEST_CID, struct.pack("=Q", cid))
            return cid
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, "no address for the guest is free")


def _client() -> socket.socket:
    """A socket bound to a port by which the agent sees that a privileged process of the host is calling."""
    client = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        _bind_privileged(client)
    except BaseException:
        client.close()
        raise
    return client


def _bind_privileged(client: socket.socket) -> None:
    first = secrets.randbelow(_LAST_PRIVILEGED_PORT)
    for offset in range(_LAST_PRIVILEGED_PORT):
        try:
            client.bind((socket.VMADDR_CID_ANY, 1 + (first + offset) % _LAST_PRIVILEGED_PORT))
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, "all privileged ports are taken")
