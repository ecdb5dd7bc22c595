"""The sockets that the server listens on: Unix sockets, and TCP with mutual TLS."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import grp
import os
import socket
import ssl
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

from personality.http.server import Server

_BACKLOG = 512
_UNIX_PATH_LIMIT = 107  # bytes, of sockaddr_un
_DOCKER_GROUP = "docker"


class ListenError(Exception):
    """An address cannot be listened on; the message says why and what to do."""


@contextlib.asynccontextmanager
async def listening(server: Server, hosts: list[str], tls: ssl.SSLContext | None) -> AsyncIterator[None]:
    """Serves on `hosts` ("unix://PATH", "tcp://ADDRESS:PORT") within the context; all of them, or none.

    Raises ListenError.
    """
    async with contextlib.AsyncExitStack() as stack:
        for host in hosts:
            scheme, _, address = host.partition("://")
            if scheme == "unix" and address:
                await stack.enter_async_context(_listening_unix(server, Path(address)))
            elif scheme == "tcp" and address:
                await stack.enter_async_context(_listening_tcp(server, host, tls))
            else:
                raise ListenError(f"{host}: an address is unix://PATH or tcp://ADDRESS:PORT")
        yield


@contextlib.asynccontextmanager
async def _listening_unix(server: Server, path: Path) -> AsyncIterator[None]:
    sock = _bind_unix(path)
    identity = _identity(path)
    try:
        listener = await asyncio.get_running_loop().create_unix_server(server.protocol, sock=sock, backlog=_BACKLOG)
        try:
            yield
        finally:
            listener.close()
    finally:
        sock.close()
        _remove_own_socket(path, identity)


def _bind_unix(path: Path) -> socket.socket:
    """A socket bound to `path`, for owner and group alone; takes the place of one that nobody listens on."""
    if len(os.fsencode(path)) > _UNIX_PATH_LIMIT:
        raise ListenError(f"{path}: the path of a socket has at most {_UNIX_PATH_LIMIT} bytes")
    sock = socket.socket(socket.AF_UNIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_dead_socket(path)
        umask = os.umask(0o117)  # the mode must hold from the first moment on
        try:
            sock.bind(os.fspath(path))
        finally:
            os.umask(umask)
        _give_to_group(path)
    except OSError as error:
        sock.close()
        raise ListenError(f"{path}: cannot listen here: {error.strerror or error}") from error
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_dead_socket(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(f"{path}: this exists and is not a socket; it is left alone")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        result = probe.connect_ex(os.fspath(path))
    if result != errno.ECONNREFUSED:
        raise ListenError(f"{path}: somebody serves on this socket already")
    path.unlink(missing_ok=True)


def _remove_own_socket(path: Path, identity: tuple[int, int] | None) -> None:
    # By now the path may be a newer server's.
    if _identity(path) == identity:
        path.unlink(missing_ok=True)


def _give_to_group(path: Path) -> None:
    if os.geteuid() != 0:
        return
    with contextlib.suppress(KeyError):
        os.chown(path, -1, grp.getgrnam(_DOCKER_GROUP).gr_gid)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


@contextlib.asynccontextmanager
async def _listening_tcp(server: Server, host: str, tls: ssl.SSLContext | None) -> AsyncIterator[None]:
    if tls is None:
        raise ListenError(
            f"{host}: TCP is served with mutual TLS only, as whoever reaches the socket owns the host: "
            "give --tlscacert, --tlscert and --tlskey"
        )
    address, port = _tcp_address(host)
    try:
        listener = await asyncio.get_running_loop().create_server(
            functools.partial(server.protocol, tls), address, port, backlog=_BACKLOG
        )
    except OSError as error:
        raise ListenError(f"{host}: cannot listen here: {error.strerror or error}") from error
    try:
        yield
    finally:
        listener.close()


def _tcp_address(host: str) -> tuple[str, int]:
    try:
        parts = urlsplit(host)
        address, port = parts.hostname, parts.port
    except ValueError as error:
        raise ListenError(f"{host}: {error}") from error
    if not address or port is None or parts.path:
        raise ListenError(f"{host}: an address is tcp://ADDRESS:PORT")
    return address, port
