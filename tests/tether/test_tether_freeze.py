"""Freeze: the agent asks the hypervisor to make a template of its VM, and goes on in the clones."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tether_host import PATIENCE_S, Agent, RawHost, spec, start_request
from tether_hypervisor import read_command, reply

from portlayer.agent.errors import FAILED_PRECONDITION, AgentRpcError
from tether.v1 import tether_pb2 as pb
from tether.wire import SessionLost, SessionOpened


class FakeHypervisor:
    """What listens beside the agent's socket."""

    def __init__(self, agent: Agent) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f"{agent.path}.hypervisor")
        self.listener.listen()
        self.listener.settimeout(PATIENCE_S)
        self.connections: list[socket.socket] = []

    def accept(self) -> socket.socket:
        """Takes the agent's next connection and its first question."""
        connection, _ = self.listener.accept()
        connection.settimeout(PATIENCE_S)
        self.connections.append(connection)
        assert read_command(connection).startswith(b"info-get guestinfo.")
        connection.sendall(reply(b"0 No value found"))
        return connection

    def close(self) -> None:
        for one in (self.listener, *self.connections):
            one.close()


@pytest.fixture
def hypervisor(agent: Agent) -> Iterator[FakeHypervisor]:
    fake = FakeHypervisor(agent)
    yield fake
    fake.close()


def ask(host: RawHost, request_id: str) -> int:
    """Sends a Freeze; the answer comes when the hypervisor was heard."""
    payload = pb.FreezeRequest(request_id=request_id).SerializeToString()
    stream = host.session.send_request("tether.v1.Tether", "Freeze", payload)
    host.socket.sendall(host.session.data_to_send())
    return stream


def hello(host: RawHost) -> pb.HelloResponse:
    return pb.HelloResponse.FromString(host.call("Hello", pb.HelloRequest()).payload)


@pytest.mark.parametrize("thaw", [reply(b"1 "), b""], ids=["answered", "cut off"])
def test_a_clone_announces_itself_and_starts_a_container(agent: Agent, hypervisor: FakeHypervisor, thaw: bytes) -> None:
    with RawHost(agent.path) as host:
        before = hello(host)
        stream = ask(host, "freeze-1")
        connection = hypervisor.accept()
        assert host.answer(stream).code == 0
        assert read_command(connection) == b"instantclone.freeze"
        # Until it stands still it serves, and repeating the call does nothing more.
        assert host.call("Freeze", pb.FreezeRequest(request_id="freeze-1")).code == 0
        connection.sendall(thaw)
        connection.close()
        host.until(lambda event: isinstance(event, SessionLost))
        host.session.connect()
        host.until(lambda event: isinstance(event, SessionOpened))
        # In a clone, too: it is not frozen again.
        assert host.call("Freeze", pb.FreezeRequest(request_id="freeze-1")).code == 0
        assert hello(host).boot_id == before.boot_id
        answer = host.call("Start", start_request(spec("true")))
        assert pb.StartResponse.FromString(answer.payload).pid
        assert hello(host).boot_id != before.boot_id


def test_a_refusal_leaves_the_session_alone_and_freezing_can_be_tried_again(
    agent: Agent, hypervisor: FakeHypervisor
) -> None:
    with RawHost(agent.path) as host:
        for _ in range(2):
            stream = ask(host, "freeze-1")
            connection = hypervisor.accept()
            assert host.answer(stream).code == 0
            assert read_command(connection) == b"instantclone.freeze"
            connection.sendall(reply(b"0 Feature is disabled"))
            assert connection.recv(1) == b""
        assert hello(host).started_request_id == ""


def test_a_container_that_starts_meanwhile_is_not_frozen(agent: Agent, hypervisor: FakeHypervisor) -> None:
    with RawHost(agent.path) as host:
        freeze = ask(host, "freeze-1")
        start = start_request(spec("sleep", "1000")).SerializeToString()
        started = host.session.send_request("tether.v1.Tether", "Start", start)
        host.socket.sendall(host.session.data_to_send())
        connection = hypervisor.accept()
        assert host.answer(freeze).code == 0
        assert host.answer(started).code == 0
        assert connection.recv(1) == b""  # it hung up without having asked


async def test_what_has_been_started_is_never_frozen(agent: Agent, hypervisor: FakeHypervisor) -> None:
    async with agent.connect() as client:
        await client.start(start_request(spec("sleep", "1000"), rehearsal=True))
        with pytest.raises(AgentRpcError, match="has been started") as refusal:
            await client.freeze("freeze-1")
        assert refusal.value.rpc_code == FAILED_PRECONDITION
        with pytest.raises(AgentRpcError, match="needs a request id"):
            await client.freeze("")


async def test_without_a_hypervisor_that_can_nothing_is_frozen(agent: Agent) -> None:
    assert not Path(f"{agent.path}.hypervisor").exists()
    async with agent.connect() as client:
        with pytest.raises(AgentRpcError, match="cannot be frozen from inside") as refusal:
            await client.freeze("freeze-1")
        assert refusal.value.rpc_code == FAILED_PRECONDITION
        assert (await client.start(start_request(spec("true")))).pid
