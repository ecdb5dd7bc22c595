"""vsock as far as a machine without /dev/vhost-vsock can show it: the probe, guests' addresses, connections."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop
from qemu_machines import PATIENCE_S, descriptors, make_spec

import tether.vsock
from portlayer.drivers.qemu import LocalDatastore, command, process, vsock
from portlayer.drivers.qemu.disks import EmptyDisks
from portlayer.drivers.qemu.inventory import Inventory
from portlayer.drivers.qemu.machine import QemuMachine
from portlayer.errors import DriverError, InvalidArgumentError


class FakeHost:
    """The kernel's side of /dev/vhost-vsock: addresses that are taken, or an error for all of them."""

    def __init__(self) -> None:
        self.taken: set[int] = set()
        self.error = 0
        self.claimed: list[int] = []

    def ioctl(self, fd: int, number: int, argument: bytes) -> int:
        assert number == 0x4008AF60
        assert os.fstat(fd)
        (cid,) = struct.unpack("=Q", argument)
        assert 2 < cid < 0xFFFF_FFFF
        if self.error or cid in self.taken:
            code = self.error or errno.EADDRINUSE
            raise OSError(code, os.strerror(code))
        self.claimed.append(cid)
        return 0


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHost]:
    """A host whose vhost-vsock works; nothing may stay open."""
    device = tmp_path / "vhost-vsock"
    device.touch()
    fake = FakeHost()
    monkeypatch.setattr(vsock, "_DEVICE", str(device))
    monkeypatch.setattr(fcntl, "ioctl", fake.ioctl)
    monkeypatch.setattr(vsock, "_client", lambda: contextlib.closing(socket.socket()))
    before = descriptors()
    yield fake
    assert descriptors() <= before


def refuse_ports(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def client() -> socket.socket:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(vsock, "_client", client)


def test_both_ends_mean_the_same_port() -> None:
    assert vsock.AGENT_PORT == tether.vsock.PORT


def test_all_well(host: FakeHost) -> None:
    assert vsock.probe() == ""
    assert vsock.choose("auto").channel == vsock.choose("vsock").channel == "vsock"


def test_virtio_serial_is_chosen_without_a_look(host: FakeHost) -> None:
    assert vsock.choose("virtio").channel == "virtio"
    assert not host.claimed


def missing(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(vsock, "_DEVICE", "/nonexistent/vhost-vsock")
    return "No such file"


def not_a_vhost_device(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> str:
    host.error = errno.ENOTTY
    return "Inappropriate ioctl"


def denied(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> str:
    host.error = errno.EPERM
    return "not permitted"


def all_taken(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> str:
    host.error = errno.EADDRINUSE
    return "no address for the guest is free"


def no_privileged_ports(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> str:
    refuse_ports(monkeypatch, errno.EACCES)
    return "privileged vsock port"


def no_such_family(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> str:
    refuse_ports(monkeypatch, errno.EAFNOSUPPORT)
    return "not supported"


@pytest.mark.parametrize("spoil", [missing, not_a_vhost_device, denied, all_taken, no_privileged_ports, no_such_family])
def test_each_obstacle_is_named(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[FakeHost, pytest.MonkeyPatch], str]
) -> None:
    words = spoil(host, monkeypatch)
    assert words in vsock.probe()
    choice = vsock.choose("auto")
    assert choice.channel == "virtio"
    assert words in choice.reason
    with pytest.raises(DriverError, match=words):
        vsock.choose("vsock")


def test_unknown_channel() -> None:
    with pytest.raises(InvalidArgumentError, match="auto"):
        vsock.choose("pigeon")


@pytest.mark.parametrize("machine_id", ["0" * 64, "f" * 64, "0123456789ab"])
def test_a_taken_address_gives_way_to_the_next(host: FakeHost, machine_id: str) -> None:
    with vsock.reserve(machine_id) as first:
        host.taken.add(first.cid)
        with vsock.reserve(machine_id) as second:
            assert second.cid != first.cid
            assert second.fd != first.fd
    host.taken.clear()
    with vsock.reserve(machine_id) as again:
        assert again.cid == first.cid


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner.get_loop()


async def echo_once(client: socket.socket, listener: socket.socket) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await vsock.open_stream(client, listener.getsockname())
        peer, _ = listener.accept()
        with peer:
            writer.write(b"ping")
            await writer.drain()
            # Drained is not sent: the loop may have to go on for that.
            peer.sendall(await asyncio.to_thread(peer.recv, 4) + b"!")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer


def test_connects_on_both_event_loops(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert loop.run_until_complete(echo_once(socket.socket(), listener)) == b"ping!"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        assert loop.run_until_complete(echo_once(socket.socket(socket.AF_UNIX), listener)) == b"ping!"


def test_a_refused_connection_is_an_error_and_leaves_no_socket(loop: asyncio.AbstractEventLoop) -> None:
    client = socket.socket()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # a port of its own, where it does not listen
        with pytest.raises(ConnectionRefusedError):
            loop.run_until_complete(vsock.open_stream(client, nobody.getsockname()))
    assert client.fileno() == -1


async def test_a_guest_without_agent_keeps_nobody_longer_than_asked() -> None:
    """Through the real socket family where the kernel has it: nobody has the highest address."""
    try:
        client = vsock._client()
    except OSError as error:
        pytest.skip(f"no vsock on this kernel, or no right to its privileged ports: {error}")
    client.close()
    with pytest.raises((OSError, TimeoutError)):
        async with asyncio.timeout(0.2):
            await vsock.connect(0xFFFF_FFFE)


async def test_a_machine_is_reached_the_way_it_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restart with other settings, too: the running QEMU's command line tells."""
    called: list[int] = []

    async def connect(cid: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        called.append(cid)
        raise ConnectionResetError(errno.ECONNRESET, "no listener yet")

    argv = ["qemu", "-device", "vhost-vsock-pci,id=vsock0,guest-cid=99,vhostfd=5"]
    monkeypatch.setattr(process, "command_line", lambda *_: argv)
    monkeypatch.setattr(vsock, "connect", connect)
    host = command.Host("qemu", "tcg", True, tmp_path, channel="virtio")
    inventory = Inventory(tmp_path / "machines", EmptyDisks(tmp_path / "empties"))
    machine = QemuMachine(make_spec(), inventory, LocalDatastore(tmp_path), lambda: host)
    with pytest.raises(DriverError, match="connecting to the agent"):
        await machine.open_channel()
    assert called == [99]
