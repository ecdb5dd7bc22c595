"""A start as the API sees it, without a CLI's own time: from the call to the first byte of output."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

_SECONDS = 120.0
_HEAD_END = b"\r\n\r\n"


class ApiError(Exception):
    """The endpoint answered with an error, or not at all."""


@dataclass(frozen=True)
class Start:
    """One start of a container."""

    # From sending the call until its output's first byte is here.
    seconds: float
    # As a VCH's inspect says it: how the VM came to run, and how long each phase took, ms. Empty of a dockerd.
    method: str
    phases: dict[str, float]


def start(address: str, image: str, command: list[str], host_config: dict[str, Any]) -> Start:
    """Creates a container, attaches, starts it and removes it; `command` must write something. Raises ApiError."""
    try:
        # One connection for all calls: it stands before the clock runs, as a client's that does more than one thing.
        with closing(Connection(address)) as connection:
            wanted = {"Image": image, "Cmd": command, "HostConfig": host_config}
            container = call(connection, "POST", "/containers/create", wanted)["Id"]
            try:
                with _attached(address, container) as output:
                    seconds = _start(connection, container, output)
                call(connection, "POST", f"/containers/{container}/wait")
                vm = call(connection, "GET", f"/containers/{container}/json").get("VirtualMachine", {})
            finally:
                call(connection, "DELETE", f"/containers/{container}?force=1")
    except (OSError, http.client.HTTPException) as error:
        raise ApiError(f"{address}: {error or type(error).__name__}") from error
    return Start(seconds, vm.get("StartMethod", ""), vm.get("StartPhases", {}))


def _start(connection: Connection, container: str, output: socket.socket) -> float:
    begin = time.perf_counter()
    connection.request("POST", f"/containers/{container}/start")
    # The first output can be here before the answer is.
    first = output.recv(1)
    seconds = time.perf_counter() - begin
    _answer(connection, f"start of {container}")
    if not first:
        raise ApiError(f"container {container} wrote nothing")
    return seconds


@contextmanager
def _attached(address: str, container: str) -> Iterator[socket.socket]:
    """A connection that carries the container's output from now on."""
    with closing(_connect(address)) as stream:
        path = f"/containers/{container}/attach?stream=1&stdout=1&stderr=1"
        head_lines = (
            f"POST {path} HTTP/1.1",
            "Host: docker",
            "Connection: Upgrade",
            "Upgrade: tcp",
            "Content-Length: 0",
        )
        stream.sendall("\r\n".join((*head_lines, "", "")).encode())
        head = b""
        while not head.endswith(_HEAD_END):
            if not (byte := stream.recv(1)):
                raise ApiError(f"attach: the connection ended after {head!r}")
            head += byte
        if b" 101 " not in head.splitlines()[0]:
            raise ApiError(f"attach: {head.splitlines()[0]!r}")
        yield stream


class Connection(http.client.HTTPConnection):
    """To the Unix socket of an endpoint, unix://PATH."""

    def __init__(self, address: str) -> None:
        super().__init__("docker", timeout=_SECONDS)
        self._address = address

    def connect(self) -> None:
        self.sock = _connect(self._address)


def _connect(address: str) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX)
    connected.settimeout(_SECONDS)
    try:
        connected.connect(address.removeprefix("unix://"))
    except BaseException:
        connected.close()
        raise
    return connected


def call(connection: Connection, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """The answer, decoded; nothing is {}. Raises ApiError."""
    text = None if body is None else json.dumps(body)
    connection.request(method, path, text, {"Content-Type": "application/json"})
    return _answer(connection, f"{method} {path}")


def _answer(connection: Connection, what: str) -> Any:
    response = connection.getresponse()
    text = response.read()
    if response.status >= 400:
        raise ApiError(f"{what}: {response.status} {text.decode(errors='replace').strip()}")
    return json.loads(text) if text else {}
