"""The agent's vsock listener, over stream sockets of a family that every kernel has."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tether_host import PATIENCE_S, open_files

from tether import vsock
from tether.channel import Channel
from tether.loop import Loop
from tether.wire import Event, RequestReceived, ResponseReceived, Role, Session, SessionOpened


class Agent:
    """A loop in a thread that serves one channel and answers every request with its own payload."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trust = True
        self.loop = Loop()
        self.channel = Channel(self.loop, self._on_event, lambda: None)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(8)
        vsock.serve(self.loop, self.listener, self.channel.attach, lambda _: self.trust)
        read, self._stop = os.pipe()
        self.loop.watch(read, self.loop.stop)
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()

    def _on_event(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self.channel.session.send_response(event.stream_id, event.payload)

    def end(self) -> None:
        os.write(self._stop, b"x")
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        self.listener.close()


class Host:
    """The other end of one connection."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(str(path))
        self.session = Session(Role.HOST)

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def until(self, kind: type[Any]) -> Event:
        while True:
            self.socket.sendall(self.session.data_to_send())
            data = self.socket.recv(65536)
            assert data, "the agent hung up"
            for event in self.session.receive_data(data):
                if isinstance(event, kind):
                    return event

    def echo(self, payload: bytes) -> bytes:
        self.session.send_request("s", "m", payload)
        event = self.until(ResponseReceived)
        assert isinstance(event, ResponseReceived)
        return event.payload

    def open(self) -> None:
        self.session.connect()
        self.until(SessionOpened)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path / "s")
    yield agent
    agent.end()


def test_one_connection_after_another(agent: Agent) -> None:
    for number in range(3):
        with Host(agent.path) as host:
            host.open()
            assert host.echo(b"%d" % number) == b"%d" % number


def test_a_newer_connection_replaces_the_older(agent: Agent) -> None:
    with Host(agent.path) as first:
        first.open()
        first.socket.sendall(b"\xf5vch\x00")  # half a frame, which must not reach the next session
        with Host(agent.path) as second:
            second.open()
            assert second.echo(b"x") == b"x"
        with contextlib.suppress(ConnectionResetError):
            while first.socket.recv(1024):  # what was on its way; then it is closed
                pass


def test_strangers_are_not_listened_to(agent: Agent) -> None:
    with Host(agent.path) as host:
        host.open()
        agent.trust = False
        with Host(agent.path) as stranger:
            assert stranger.socket.recv(1) == b""
        assert host.echo(b"still here") == b"still here"


def test_no_descriptor_is_left_of_a_replaced_connection(agent: Agent) -> None:
    with Host(agent.path) as host:
        host.open()
    before = open_files()
    for _ in range(5):
        with Host(agent.path) as host:
            host.open()
    assert len(open_files() - before) <= 1


@pytest.mark.parametrize(
    ("address", "trusted"), [((2, 1), True), ((2, 1023), True), ((2, 1024), False), ((1, 1), False), ((77, 1), False)]
)
def test_only_privileged_processes_of_the_host_are_trusted(address: tuple[int, int], trusted: bool) -> None:
    assert vsock.is_host(address) is trusted


def test_listens_wherever_the_kernel_knows_the_family() -> None:
    try:
        listener = vsock.listen()
    except OSError as error:
        pytest.skip(f"this kernel has no AF_VSOCK: {error}")
    with listener:
        assert listener.getsockname()[1] == vsock.PORT
