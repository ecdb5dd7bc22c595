"""GuestRPC: what the agent says to the hypervisor, and what it makes of the answers."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from tether_host import PATIENCE_S, open_files
from tether_hypervisor import frame, number, read_command, reply, string

from tether import guestinfo
from tether.guestinfo import Hypervisor, RefusedError


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Hypervisor, socket.socket]]:
    monkeypatch.setattr(guestinfo, "_PATIENCE_S", PATIENCE_S)
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE_S)
    hypervisor = Hypervisor(ours)
    yield hypervisor, theirs
    hypervisor.close()
    theirs.close()


def test_a_value(line: tuple[Hypervisor, socket.socket]) -> None:
    hypervisor, theirs = line
    theirs.sendall(reply(b"1 a value \xff with a space"))
    assert hypervisor.get("guestinfo.x") == b"a value \xff with a space"
    assert read_command(theirs) == b"info-get guestinfo.x"


def test_an_empty_value_and_none(line: tuple[Hypervisor, socket.socket]) -> None:
    hypervisor, theirs = line
    theirs.sendall(reply(b"1 ") + reply(b"0 No value found"))
    assert hypervisor.get("guestinfo.empty") == b""
    assert hypervisor.get("guestinfo.none") is None


def test_fields_that_nobody_knows_are_passed_over(line: tuple[Hypervisor, socket.socket]) -> None:
    hypervisor, theirs = line
    theirs.sendall(frame(string(7, b"0 no"), number(3, 1 << 40), string(2, b"1 yes"), number(1, 1)))
    assert hypervisor.get("guestinfo.x") == b"yes"


def test_an_answer_in_pieces(line: tuple[Hypervisor, socket.socket]) -> None:
    hypervisor, theirs = line
    whole = reply(b"1 " + b"v" * 60_000)

    def answer() -> None:
        read_command(theirs)
        for start in range(0, len(whole), 7_001):
            theirs.sendall(whole[start : start + 7_001])

    thread = threading.Thread(target=answer)
    thread.start()
    assert hypervisor.get("guestinfo.x") == b"v" * 60_000
    thread.join()


def test_a_refusal_is_told(line: tuple[Hypervisor, socket.socket]) -> None:
    hypervisor, theirs = line
    theirs.sendall(reply(b"0 Permission denied"))
    with pytest.raises(RefusedError, match="Permission denied"):
        hypervisor.get("guestinfo.x")


@pytest.mark.parametrize(
    "answer",
    [
        struct.pack(">I", 0xFFFF_FFFF),
        struct.pack(">I", 200_000),
        frame(),
        frame(number(1, 1)),
        frame(string(2, b"1 x")[:-1]),
        frame(number(1, 1)[:6]),
        frame(struct.pack(">II", 3, 2) + b"1 x "),
        frame(struct.pack(">III", 2, 2, 0xFFFF_FFFF) + b"1 x"),
        reply(b"2 what?"),
        reply(b"1 cut off")[:-3],
        b"",
    ],
)
def test_answers_that_are_none(line: tuple[Hypervisor, socket.socket], answer: bytes) -> None:
    hypervisor, theirs = line
    theirs.sendall(answer)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(OSError):  # noqa: PT011
        hypervisor.get("guestinfo.x")


@pytest.mark.parametrize("answer", [reply(b"1 "), b""])
def test_a_clone_has_an_answer_or_is_cut_off(line: tuple[Hypervisor, socket.socket], answer: bytes) -> None:
    hypervisor, theirs = line
    hypervisor.ask_to_freeze()
    assert read_command(theirs) == b"instantclone.freeze"
    theirs.sendall(answer)
    theirs.shutdown(socket.SHUT_WR)
    hypervisor.hear_of_freezing()


def test_what_was_not_frozen_is_told(line: tuple[Hypervisor, socket.socket]) -> None:
    hypervisor, theirs = line
    hypervisor.ask_to_freeze()
    theirs.sendall(reply(b"0 Feature is disabled"))
    with pytest.raises(RefusedError, match="Feature is disabled"):
        hypervisor.hear_of_freezing()


def test_connecting_asks_for_an_answer() -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(reply(b"0 No value found"))
    with theirs:
        guestinfo.connect(lambda: ours).close()
        assert read_command(theirs).startswith(b"info-get guestinfo.")


def test_a_hypervisor_that_hangs_up_is_none() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    before = open_files()
    with pytest.raises(OSError):  # noqa: PT011
        guestinfo.connect(lambda: ours)
    assert ours.fileno() == -1
    assert not open_files() - before


class FakeSocket:
    """A vsock whose connections fail from all source ports but one."""

    works_from = 1021
    failure = errno.EHOSTUNREACH
    tried: list[int]

    def __init__(self, family: int, kind: int) -> None:
        assert family == socket.AF_VSOCK
        self.open = True

    def settimeout(self, _: float) -> None:
        pass

    def bind(self, address: tuple[int, int]) -> None:
        assert address[0] == socket.VMADDR_CID_ANY
        self.port = address[1]
        FakeSocket.tried.append(self.port)
        if self.port == 1023:
            raise OSError(errno.EADDRINUSE, "in use")

    def connect(self, address: tuple[int, int]) -> None:
        assert address == (0, 976)
        if self.port == 1022:
            raise ConnectionResetError(errno.ECONNRESET, "just closed")
        if self.port != self.works_from:
            raise OSError(self.failure, os.strerror(self.failure))

    def close(self) -> None:
        self.open = False


@pytest.fixture
def fake_vsock(monkeypatch: pytest.MonkeyPatch) -> type[FakeSocket]:
    FakeSocket.tried = []
    monkeypatch.setattr(guestinfo.socket, "socket", FakeSocket)
    return FakeSocket


def test_the_next_privileged_port_is_tried(fake_vsock: type[FakeSocket]) -> None:
    connection = guestinfo._dial()
    assert fake_vsock.tried == [1023, 1022, 1021]
    assert connection.open  # type: ignore[attr-defined]


def test_without_a_hypervisor_one_try_is_enough(fake_vsock: type[FakeSocket], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_vsock, "works_from", 0)
    with pytest.raises(OSError, match="no GuestRPC here") as caught:
        guestinfo._dial()
    assert caught.value.errno == errno.EHOSTUNREACH
    assert fake_vsock.tried == [1023, 1022, 1021]
