"""Two sessions joined by a line: whatever one side says is what the other hears, on any line and after any loss."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.wire import (
    MAX_PAYLOAD,
    DataReceived,
    Event,
    LocalProtocolError,
    RequestReceived,
    ResponseReceived,
    Role,
    Session,
    SessionLost,
    SessionOpened,
    link,
)
from tether.wire.framing import MessageType, encode


class Line:
    """Host and guest with a perfect line between; `deliver` carries everything, in the pieces it is told."""

    def __init__(self, cuts: random.Random | None = None) -> None:
        self.host = Session(Role.HOST)
        self.guest = Session(Role.GUEST)
        self.heard: dict[Role, list[Event]] = {Role.HOST: [], Role.GUEST: []}
        self._cuts = cuts

    def deliver(self) -> None:
        for _ in range(100):
            up, down = self.guest.data_to_send(), self.host.data_to_send()
            if not up and not down:
                return
            self.carry(Role.HOST, up)
            self.carry(Role.GUEST, down)
        pytest.fail("the two ends never fall silent")

    def carry(self, to: Role, data: bytes) -> None:
        session = self.host if to is Role.HOST else self.guest
        while data:
            size = self._cuts.randint(1, len(data)) if self._cuts else len(data)
            self.heard[to] += session.receive_data(data[:size])
            data = data[size:]

    def connect(self) -> None:
        self.host.connect()
        self.deliver()
        assert self.host.is_open
        assert self.guest.is_open
        for events in self.heard.values():
            events.clear()


def _echo(line: Line, messages: list[bytes]) -> None:
    """A streaming call with messages in both directions, checked at both ends."""
    stream = line.host.send_request("service", "Method", b"first", more=True, timeout_ns=5)
    for message in messages:
        line.host.send_data(stream, message)
    line.host.send_data(stream, b"", end=True)
    line.deliver()
    assert line.heard[Role.GUEST] == [
        RequestReceived(stream, "service", "Method", b"first", 5, True),
        *(DataReceived(stream, message, False) for message in messages),
        DataReceived(stream, b"", True),
    ]
    for message in messages:
        line.guest.send_data(stream, message)
    line.guest.send_response(stream, b"last")
    line.deliver()
    assert line.heard[Role.HOST] == [
        *(DataReceived(stream, message, False) for message in messages),
        ResponseReceived(stream, 0, "", b"last"),
    ]


# Payloads rich in the bytes that the link layer must escape.
_payloads = st.lists(
    st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(b"\xf5vch\x00")).map(bytes)), max_size=6
)


@settings(deadline=None)  # the machine may be busy with other things
@given(messages=_payloads, seed=st.integers())
def test_any_split_of_the_stream_gives_the_same_calls(messages: list[bytes], seed: int) -> None:
    line = Line(random.Random(seed))
    line.connect()
    _echo(line, messages)


@settings(deadline=None)  # the machine may be busy with other things
@given(messages=_payloads, garbage=st.binary(max_size=300), seed=st.integers())
def test_any_garbage_before_a_session_is_passed_over(messages: list[bytes], garbage: bytes, seed: int) -> None:
    line = Line(random.Random(seed))
    line.carry(Role.HOST, garbage)
    line.carry(Role.GUEST, garbage)
    line.connect()
    _echo(line, messages)


@settings(deadline=None)  # the machine may be busy with other things
@given(
    messages=_payloads.filter(bool),
    to_guest=st.booleans(),
    where=st.floats(0, 1, exclude_max=True),
    count=st.integers(1, 400),
    seed=st.integers(),
)
def test_any_loss_ends_the_session_or_does_no_harm(
    messages: list[bytes], to_guest: bool, where: float, count: int, seed: int
) -> None:
    line = Line(random.Random(seed))
    line.connect()
    stream = line.host.send_request("service", "Method", b"", more=True)
    line.deliver()
    line.heard[Role.GUEST].clear()
    sender, receiver = (line.host, Role.GUEST) if to_guest else (line.guest, Role.HOST)
    for message in messages:
        sender.send_data(stream, message)
    data = sender.data_to_send()
    start = int(where * len(data))
    line.carry(receiver, data[:start] + data[start + count :])
    heard = [event.payload for event in line.heard[receiver] if isinstance(event, DataReceived)]
    assert heard == messages[: len(heard)]
    # Whatever state both are in now, a new session works at once.
    line.connect()
    _echo(line, messages)


@pytest.mark.parametrize("cut", [1, 30, 60_000])
def test_guest_that_restarts_in_mid_frame_is_heard(cut: int) -> None:
    line = Line()
    line.connect()
    stream = line.host.send_request("service", "Method", b"", more=True)
    line.deliver()
    line.guest.send_data(stream, bytes(65_536))
    line.carry(Role.HOST, line.guest.data_to_send()[:cut])
    line.guest = Session(Role.GUEST)
    line.deliver()
    assert any(isinstance(event, SessionLost) for event in line.heard[Role.HOST])
    line.connect()
    _echo(line, [b"again"])


def test_host_that_restarts_takes_over() -> None:
    line = Line()
    line.connect()
    line.host.send_request("service", "Method", b"")
    line.deliver()
    line.heard[Role.GUEST].clear()
    line.host = Session(Role.HOST)
    line.host.connect()
    line.deliver()
    assert line.heard[Role.GUEST] == [SessionLost("the host began a new session"), SessionOpened()]


def test_calls_that_arrive_together_with_their_sessions_end_are_not_heard() -> None:
    line = Line()
    line.connect()
    line.host.send_request("service", "Method", b"")
    last_words = line.host.data_to_send()
    line.host.connect()
    line.carry(Role.GUEST, last_words + line.host.data_to_send())
    assert line.heard[Role.GUEST] == [SessionLost("the host began a new session"), SessionOpened()]
    line.deliver()
    line.host.send_request("service", "Method", b"")
    line.heard[Role.GUEST].clear()
    line.carry(Role.GUEST, line.host.data_to_send() + b"noise")
    assert line.heard[Role.GUEST] == [SessionLost("the peer broke the protocol: damaged or missing bytes on the line")]


def test_answers_that_arrive_together_with_their_sessions_end_are_heard() -> None:
    """They may be the guest's last words."""
    line = Line()
    line.connect()
    stream = line.host.send_request("service", "Method", b"")
    line.deliver()
    line.guest.send_response(stream, b"answer")
    last_words = line.guest.data_to_send()
    line.carry(Role.HOST, last_words + Session(Role.GUEST).data_to_send())
    assert line.heard[Role.HOST] == [ResponseReceived(stream, 0, "", b"answer"), SessionLost("the agent started anew")]


def test_hello_lost_before_the_guest_listens_is_sent_again() -> None:
    host = Session(Role.HOST)
    host.connect()
    host.data_to_send()  # into the void: the VM boots
    guest = Session(Role.GUEST)
    host.receive_data(guest.data_to_send())
    assert guest.receive_data(host.data_to_send()) == [SessionOpened()]
    assert host.receive_data(guest.data_to_send()) == [SessionOpened()]


def test_stale_messages_of_an_ended_call_are_dropped() -> None:
    line = Line()
    line.connect()
    stream = line.host.send_request("service", "Method", b"", more=True)
    line.deliver()
    line.guest.send_response(stream, code=5, message="gone")
    line.host.send_data(stream, b"crossed the answer")
    line.deliver()
    assert line.heard[Role.HOST] == [ResponseReceived(stream, 5, "gone", b"")]
    assert line.guest.is_open


def test_too_many_calls_are_refused_not_queued() -> None:
    line = Line()
    line.guest = Session(Role.GUEST, max_streams=2)
    line.connect()
    streams = [line.host.send_request("service", "Method", b"") for _ in range(3)]
    line.deliver()
    assert [event.stream_id for event in line.heard[Role.HOST] if isinstance(event, ResponseReceived)] == streams[2:]
    assert isinstance(line.heard[Role.HOST][0], ResponseReceived)
    assert line.heard[Role.HOST][0].code == 8


@pytest.mark.parametrize(
    ("role", "frame"),
    [
        (Role.HOST, encode(1, MessageType.REQUEST, b"")),
        (Role.HOST, encode(1, MessageType.RESPONSE, b"")),
        (Role.GUEST, encode(1, MessageType.RESPONSE, b"")),
        (Role.GUEST, encode(2, MessageType.REQUEST, b"")),
        (Role.GUEST, encode(7, MessageType.DATA, b"")),
        (Role.GUEST, encode(1, MessageType.REQUEST, b"\xff\xff\xff")),
        (Role.GUEST, b"short"),
    ],
)
def test_broken_protocol_ends_the_session_at_both_ends(role: Role, frame: bytes) -> None:
    line = Line()
    line.connect()
    liar, victim = (line.guest, line.host) if role is Role.HOST else (line.host, line.guest)
    line.carry(role, link.encode(link.Frame(link.Kind.DATA, victim._session, 0, frame)))
    line.deliver()
    assert isinstance(line.heard[role][0], SessionLost)
    assert not liar.is_open
    assert not victim.is_open


@settings(deadline=None)  # the machine may be busy with other things
@given(data=st.lists(st.one_of(st.binary(), st.just(link.MARKER), st.sampled_from([b"\x00", b"\x7f\x7f\x7f\x7f"]))))
def test_no_bytes_can_raise_or_be_hoarded(data: list[bytes]) -> None:
    decoder = link.Decoder()
    for piece in data:
        decoder.receive(piece)
        assert len(decoder._buffer) <= link._MAX_BODY + 8
    host = Session(Role.HOST)
    host.connect()
    for piece in data:
        host.receive_data(piece)


def test_misuse_is_told_apart_from_the_peers_faults() -> None:
    line = Line()
    with pytest.raises(LocalProtocolError, match="no session"):
        line.host.send_request("service", "Method", b"")
    line.connect()
    with pytest.raises(LocalProtocolError, match="longer than"):
        line.host.send_request("service", "Method", bytes(MAX_PAYLOAD + 1))
    with pytest.raises(LocalProtocolError, match="only the guest"):
        line.host.send_response(1)
    stream = line.host.send_request("service", "Method", b"")
    with pytest.raises(LocalProtocolError, match="SEND_DATA"):
        line.host.send_data(stream, b"unary calls have no more")
