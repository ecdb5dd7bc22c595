"""Fuzzes tether/wire with libFuzzer (atheris): whatever a peer sends must neither raise nor grow nor loop.

    make fuzz                                       a minute, with what earlier runs found in build/fuzz/wire
    make fuzz FUZZ_SECONDS=3600                     an hour
    .venv/bin/python fuzz/wire.py FILE              what a crash file does (libFuzzer writes crash-*, slow-unit-*)
    .venv/bin/python fuzz/wire.py -help=1           libFuzzer's options

Needs the extra "fuzz" (`pip install -e .[fuzz]`, which `make fuzz` does). An input is a program for two sessions that
are joined by a line; see `Run`. So the fuzzer reaches states that no random bytes would reach, such as a message that
is sound in all checksums but forbidden just now. Checked all the time, at both ends:

- nothing but what the API documents is raised, and that only by our own misuse of it;
- what is kept is bounded: one incomplete frame, `max_streams` calls, answers in proportion to what was received;
- events come in an order that makes sense: no call without a session, none answered twice;
- afterwards both ends can begin a new session and talk, whatever happened before.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tether.wire"]):
    import tether.wire.session
    from tether.wire import (
        DataReceived,
        Event,
        LocalProtocolError,
        RequestReceived,
        ResponseReceived,
        Role,
        Session,
        SessionLost,
        SessionOpened,
        framing,
        link,
    )

_MAX_STREAMS = 8
_MAX_STEPS = 64
_SEEDS = (
    b"",
    bytes([0, 1, 2, 3, 4, 5, 6, 7]) * 3,
    link.encode(link.Frame(link.Kind.HELLO, 1)),
    link.encode(link.Frame(link.Kind.DATA, 1, 0, framing.encode(1, framing.MessageType.REQUEST, b"\x0a\x01s"))),
)


class End:
    """A session and what its events have said so far."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.session = Session(role, max_streams=_MAX_STREAMS)
        self.open = False
        self.calls: set[int] = set()
        self.ended: set[int] = set()
        self.received = 0
        self.answered = 0

    def receive(self, data: bytes) -> None:
        before = sum(map(len, self.session._output))
        events = self.session.receive_data(data)
        self.received += len(data)
        self.answered += max(0, sum(map(len, self.session._output)) - before)
        assert self.answered <= 3 * self.received + 100, "answers out of proportion"
        for event in events:
            self._check(event)
        assert self.open == self.session.is_open, "events and state differ"
        assert len(self.session._calls) <= _MAX_STREAMS, "too many calls are kept"
        assert len(self.session._decoder._buffer) <= link._MAX_BODY + 8, "more than a frame is kept"

    def _check(self, event: Event) -> None:
        match event:
            case SessionOpened():
                assert not self.open, "opened twice"
                self.open = True
                self.calls.clear()
                self.ended.clear()
            case SessionLost():
                assert event.reason
                self.open = False
            case RequestReceived():
                assert self.role is Role.GUEST
                assert self.open, "a call without a session"
                assert event.stream_id not in self.calls, "a call came twice"
                self.calls.add(event.stream_id)
            case DataReceived():
                assert self.open, "data without a session"
                assert event.stream_id not in self.ended, "data behind the end"
                if event.end:
                    self.ended.add(event.stream_id)
            case ResponseReceived():
                assert self.role is Role.HOST
                assert self.open, "an answer without a session"
                assert event.stream_id not in self.ended, "answered twice"
                self.ended.add(event.stream_id)


class Run:
    """Interprets an input as steps on two sessions and the line between them."""

    def __init__(self, data: bytes) -> None:
        self.source = atheris.FuzzedDataProvider(data)
        # An input must do the same thing each time.
        tether.wire.session.secrets.randbits = random.Random(0).getrandbits
        self.ends = {role: End(role) for role in Role}
        self.line: dict[Role, bytearray] = {role: bytearray() for role in Role}  # on its way to this end
        self.last_sent: dict[Role, bytes] = {role: b"" for role in Role}

    def run(self) -> None:
        steps = (self.connect, self.call, self.say, self.answer, self.carry, self.spoil, self.invent, self.forge)
        for _ in range(_MAX_STEPS):
            if not self.source.remaining_bytes():
                break
            steps[self.source.ConsumeIntInRange(0, len(steps) - 1)]()
        self.recover()

    def _role(self) -> Role:
        return Role.HOST if self.source.ConsumeBool() else Role.GUEST

    def _bytes(self) -> bytes:
        data: bytes = self.source.ConsumeBytes(self.source.ConsumeIntInRange(0, 300))
        return data

    def _stream(self) -> int:
        stream: int = self.source.ConsumeIntInRange(0, 30)
        return stream

    def connect(self) -> None:
        end = self.ends[Role.HOST]
        end.session.connect()
        end.open = False  # asked for, so that no event tells

    def call(self) -> None:
        try:
            stream = self.ends[Role.HOST].session.send_request("s", "m", self._bytes(), more=self.source.ConsumeBool())
        except LocalProtocolError:
            return
        self.ends[Role.HOST].ended.discard(stream)

    def say(self) -> None:
        try:
            self.ends[self._role()].session.send_data(self._stream(), self._bytes(), end=self.source.ConsumeBool())
        except LocalProtocolError:
            return

    def answer(self) -> None:
        code = self.source.ConsumeIntInRange(0, 16)
        message = self.source.ConsumeUnicodeNoSurrogates(20)
        try:
            self.ends[Role.GUEST].session.send_response(self._stream(), self._bytes(), code=code, message=message)
        except LocalProtocolError:
            return

    def _send(self, sender: Role) -> None:
        data = self.ends[sender].session.data_to_send()
        self.line[_other(sender)] += data
        self.last_sent[sender] = data or self.last_sent[sender]

    def carry(self) -> None:
        """Some of what is under way arrives."""
        to = self._role()
        self._send(_other(to))
        size = self.source.ConsumeIntInRange(0, 400) or len(self.line[to])
        data = bytes(self.line[to][:size])
        del self.line[to][:size]
        self.ends[to].receive(data)

    def spoil(self) -> None:
        """Bytes under way are lost or changed."""
        to = self._role()
        self._send(_other(to))
        start = self.source.ConsumeIntInRange(0, 400)
        count = self.source.ConsumeIntInRange(0, 20)
        self.line[to][start : start + count] = self.source.ConsumeBytes(self.source.ConsumeIntInRange(0, 20))

    def invent(self) -> None:
        """Bytes come from nowhere, or for the second time."""
        to = self._role()
        self.line[to] += self._bytes() if self.source.ConsumeBool() else self.last_sent[_other(to)]

    def forge(self) -> None:
        """A liar that knows the session: sound frames with anything in them."""
        to = self._role()
        victim = self.ends[to].session
        kind = link.Kind(self.source.ConsumeIntInRange(1, 5))
        message_type = framing.MessageType(self.source.ConsumeIntInRange(1, 3))
        message = self._bytes()
        if self.source.ConsumeBool():
            message = framing.encode(self._stream(), message_type, message, self.source.ConsumeIntInRange(0, 7))
        session = victim._session if self.source.ConsumeBool() else self.source.ConsumeIntInRange(0, 2**64 - 1)
        sequence = victim._received if self.source.ConsumeBool() else self.source.ConsumeIntInRange(0, 65535)
        self.ends[to].receive(bytes(self.line[to]) + link.encode(link.Frame(kind, session, sequence, message)))
        self.line[to].clear()

    def recover(self) -> None:
        """From any state a new session works, over a line that is sound from now on."""
        host, guest = self.ends[Role.HOST], self.ends[Role.GUEST]
        self.connect()
        self._settle()
        assert host.session.is_open, "the host cannot connect"
        assert guest.session.is_open, "the guest does not listen"
        stream = host.session.send_request("service", "Method", b"\xf5vch\xf5")
        self._settle()
        assert stream in guest.calls, "the call did not arrive"
        guest.session.send_response(stream, b"\xf5\x00")
        self._settle()
        assert stream in host.ended, "the answer did not arrive"

    def _settle(self) -> None:
        for _ in range(20):
            for to in Role:
                self._send(_other(to))
                data = bytes(self.line[to])
                self.line[to].clear()
                self.ends[to].receive(data)
            if not any(end.session._output for end in self.ends.values()):
                return
        raise AssertionError("the two ends never fall silent")


def _other(role: Role) -> Role:
    return Role.GUEST if role is Role.HOST else Role.HOST


def one_input(data: bytes) -> None:
    """What libFuzzer calls."""
    Run(data).run()


def main(arguments: list[str]) -> None:
    """Adds a first corpus to the directories given, then hands over to libFuzzer."""
    for directory in filter(Path.is_dir, map(Path, arguments[1:])):
        for number, seed in enumerate(_SEEDS):
            (directory / f"seed-{number}").write_bytes(seed)
    atheris.Setup(arguments, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
