"""Two conversations joined by a line: what one end says is what the other hears, in any pieces; and hostile ends."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portlayer.drivers.vsphere.serial import conversation, extension, telnet
from portlayer.drivers.vsphere.serial.conversation import Agreed, Conversation, Event, Migrating, Proxying
from portlayer.drivers.vsphere.serial.extension import Code, Message, Role, do_proxy
from portlayer.drivers.vsphere.serial.telnet import Data, LocalProtocolError, RemoteProtocolError

UUID = "502c1a00-356f-2b8d-90ab-0123456789ff"
# Bytes that mean something in telnet, and a few that do not.
BYTES = st.binary(max_size=40) | st.lists(st.sampled_from([255, 240, 250, 251, 253, 232, 0, 13, 10]), max_size=40).map(
    bytes
)


def joined(events: Iterable[Event]) -> list[Event]:
    """Events with neighbouring data put together: where it was cut means nothing."""
    found: list[Event] = []
    for event in events:
        if isinstance(event, Data) and found and isinstance(found[-1], Data):
            found[-1] = Data(found[-1].data + event.data)
        else:
            found.append(event)
    return found


class Line:
    """A VM and a proxy with a line between that carries all bytes, in the pieces it is told."""

    def __init__(self, cuts: random.Random | None = None) -> None:
        self.ends = {role: Conversation(role) for role in Role}
        self.heard: dict[Role, list[Event]] = {role: [] for role in Role}
        self._cuts = cuts

    def deliver(self) -> None:
        for _ in range(20):
            sent = {role: end.data_to_send() for role, end in self.ends.items()}
            if not any(sent.values()):
                return
            for role, data in sent.items():
                self.carry(Role.PROXY if role is Role.VM else Role.VM, data)
        pytest.fail("the two ends never fall silent")

    def carry(self, to: Role, data: bytes) -> None:
        while data:
            size = self._cuts.randint(1, len(data)) if self._cuts else len(data)
            self.heard[to] += self.ends[to].receive_data(data[:size])
            data = data[size:]

    def agree(self) -> None:
        self.deliver()
        assert self.heard == {role: [Agreed()] for role in Role}
        for events in self.heard.values():
            events.clear()

    def say(self, role: Role, *things: Message | bytes) -> None:
        """One end says this, all of it is carried, and the other has heard exactly that."""
        for thing in things:
            if isinstance(thing, bytes):
                self.ends[role].send_data(thing)
            else:
                self.ends[role].send(thing)
        self.deliver()
        peer = Role.PROXY if role is Role.VM else Role.VM
        wanted = [Data(thing) if isinstance(thing, bytes) else thing for thing in things if thing != b""]
        assert joined(self.heard[peer]) == joined(wanted)
        self.heard[peer].clear()


@pytest.fixture
def line() -> Line:
    made = Line()
    made.agree()
    return made


def test_both_ends_agree_on_eight_bits_and_the_extension(line: Line) -> None:
    for option in (telnet.Option.BINARY, telnet.Option.SUPPRESS_GO_AHEAD):
        for end in line.ends.values():
            for local in (True, False):
                assert end._telnet.is_enabled(option, local=local)


def test_a_whole_life_with_a_vmotion(line: Line) -> None:
    line.say(Role.VM, Message(Code.KNOWN_SUBOPTIONS_1, bytes(Code)))
    assert line.ends[Role.PROXY].peer_knows == set(Code)
    line.say(Role.PROXY, Message(Code.KNOWN_SUBOPTIONS_2, bytes(Code)), Message(Code.GET_VM_VC_UUID))
    line.say(Role.VM, Message(Code.VM_VC_UUID, UUID.encode()), do_proxy("C", "vch://x"))
    line.say(Role.PROXY, Message(Code.WILL_PROXY))
    assert {end.proxying for end in line.ends.values()} == {Proxying.CARRYING}
    line.say(Role.VM, b"up \xff\xff\xf0")
    line.say(Role.PROXY, b"\xff down", Message(Code.GET_VM_NAME), b"\xff")
    line.say(Role.VM, Message(Code.VMOTION_BEGIN, b"\xff\x01"), b"last")
    line.say(Role.PROXY, Message(Code.VMOTION_GOAHEAD, b"\xff\x01\xff\xff"))
    assert {end.migrating for end in line.ends.values()} == {Migrating.LEAVING}
    line.say(Role.VM, Message(Code.VMOTION_ABORT))

    destination = Line()
    destination.agree()
    destination.say(Role.VM, Message(Code.VMOTION_PEER, b"\xff\x01\xff\xff"))
    destination.say(Role.PROXY, Message(Code.VMOTION_PEER_OK, b"\xff\x01\xff\xff"))
    destination.say(Role.VM, Message(Code.VMOTION_COMPLETE), b"here")
    assert {end.migrating for end in destination.ends.values()} == {Migrating.SETTLED}


@settings(deadline=None)  # the machine may be busy with other things
@given(up=st.lists(BYTES), down=st.lists(BYTES), cuts=st.randoms(use_true_random=False))
def test_any_bytes_in_any_pieces(up: list[bytes], down: list[bytes], cuts: random.Random) -> None:
    line = Line(cuts)
    line.deliver()
    for events in line.heard.values():
        events.clear()
    name = Message(Code.VM_NAME, b"\xff\xf0\xff")
    line.say(Role.VM, *up, name, *up, do_proxy("S", "vch://\xff"))
    line.say(Role.PROXY, *down, Message(Code.WILL_PROXY), *down, Message(Code.GET_VM_NAME))


@settings(deadline=None)  # the machine may be busy with other things
@given(st.binary(max_size=200) | st.lists(BYTES, max_size=6).map(b"".join), st.randoms(use_true_random=False))
def test_hostile_bytes_end_in_a_protocol_error_or_in_events_the_same_in_any_pieces(
    data: bytes, cuts: random.Random
) -> None:
    def hear(pieces: Iterable[bytes]) -> list[Event] | str:
        line = Line()
        line.agree()
        try:
            return joined(event for piece in pieces for event in line.ends[Role.PROXY].receive_data(piece))
        except RemoteProtocolError as error:
            return str(error)

    places = sorted(cuts.randint(0, len(data)) for _ in range(5))
    cut = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
    assert hear([data]) == hear(cut)


def vmware(body: bytes) -> bytes:
    return b"\xff\xfa\xe8" + body.replace(b"\xff", b"\xff\xff") + b"\xff\xf0"


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\xff\xfc\xe8", "does not speak"),
        (b"\xff\xfb\xe8" + b"\xff\xf0", "means nothing"),
        (b"\xff\xfb\xe8" + b"\xff\x10", "means nothing"),
        (vmware(bytes([Code.VM_NAME])), "not agreed"),
        (b"\xff\xfb\xe8" + b"\xff\xfa\xff\xf0", "no option"),
        (b"\xff\xfb\xe8" + vmware(b""), "empty"),
        (b"\xff\xfb\xe8\xff\xfa\x18\x00xterm\xff\xf0", "option 24"),
        (b"\xff\xfb\xe8\xff\xfa\xe8\x50\xff\xfb", "within a sub-negotiation"),
        (b"\xff\xfb\xe8\xff\xfa\xe8" + b"x" * 5000, "without end"),
        (b"\xff\xfb\xe8" + vmware(b"R" + b"x" * 2100), "2102 bytes"),
        (b"\xff\xfb\xe8" + vmware(bytes([Code.VM_NAME]) + b"x" * 1100), "VM_NAME with 1100"),
        (b"\xff\xfb\xe8" + vmware(bytes([Code.VMOTION_BEGIN])), "VMOTION_BEGIN with 0"),
        (b"\xff\xfb\xe8" + vmware(bytes([Code.WILL_PROXY])), "not for the vm to send"),
        (b"\xff\xfb\xe8" + vmware(bytes([Code.VMOTION_COMPLETE])), "VMOTION_COMPLETE is not allowed"),
        (b"\xff\xfb\xe8" + 2 * vmware(bytes([Code.DO_PROXY]) + b"C"), "DO_PROXY is not allowed"),
        (b"\xff\xfd\x63" * 300, "option requests"),
        (b"\xff\xfb\xe8" + 5000 * vmware(bytes([Code.VM_NAME])), "messages"),
    ],
)
def test_what_breaks_the_protocol_is_told(data: bytes, complaint: str) -> None:
    with pytest.raises(RemoteProtocolError, match=complaint):
        list(Conversation(Role.PROXY).receive_data(data))


def test_an_endless_subnegotiation_is_not_kept() -> None:
    proxy = Conversation(Role.PROXY)
    list(proxy.receive_data(b"\xff\xfb\xe8\xff\xfa\xe8"))
    with pytest.raises(RemoteProtocolError, match="without end"):
        for _ in range(5000):
            list(proxy.receive_data(b"xx"))


def test_serial_bytes_may_come_before_anything_is_agreed_on() -> None:
    proxy = Conversation(Role.PROXY)
    heard = list(proxy.receive_data(b"BIOS\xff\xff\xff\xfb\xe8 up" + vmware(bytes([Code.KNOWN_SUBOPTIONS_1, 70]))))
    assert heard == [Data(b"BIOS\xff"), Agreed(), Data(b" up"), Message(Code.KNOWN_SUBOPTIONS_1, b"F")]


def test_what_is_answered_at_once_allows_what_came_with_it(line: Line) -> None:
    proxy = line.ends[Role.PROXY]
    begin = Message(Code.VMOTION_BEGIN, b"s")
    together = [begin, begin, Message(Code.VMOTION_ABORT), begin, Message(Code.VMOTION_ABORT)]
    heard = []
    for event in proxy.receive_data(b"".join(vmware(message.encode()) for message in together)):
        heard.append(event)
        if event == begin:
            proxy.send(Message(Code.VMOTION_GOAHEAD, b"s+secret"))
    assert heard == together
    assert proxy.migrating is Migrating.SETTLED


def test_unknown_messages_and_options_are_declined(line: Line) -> None:
    line.carry(Role.PROXY, vmware(b"\xc8abc") + b"\xff\xfd\x22\xff\xfb\x22\xff\xf1")
    assert line.ends[Role.PROXY].data_to_send() == b"\xff\xfc\x22\xff\xfe\x22" + vmware(b"\x03\xc8")
    line.carry(Role.VM, vmware(b"\xc9"))
    assert line.ends[Role.VM].data_to_send() == vmware(b"\x02\xc9")


def test_options_that_change_are_answered_once_and_repeated_ones_never(line: Line) -> None:
    proxy = line.ends[Role.PROXY]
    line.carry(Role.PROXY, b"\xff\xfb\x00\xff\xfd\x00")
    assert proxy.data_to_send() == b""
    line.carry(Role.PROXY, b"\xff\xfc\x00\xff\xfc\x00\xff\xfd\x01\xff\xfd\x01")
    assert proxy.data_to_send() == b"\xff\xfe\x00\xff\xfb\x01"


@pytest.mark.parametrize(
    "message",
    [
        Message(Code.WILL_PROXY),
        Message(Code.VMOTION_GOAHEAD, b"x"),
        Message(Code.VMOTION_PEER_OK, b"x"),
        Message(Code.VM_NAME, b"not ours to say"),
        Message(Code.KNOWN_SUBOPTIONS_2, bytes(300)),
    ],
)
def test_what_this_end_must_not_say_is_a_local_error(line: Line, message: Message) -> None:
    with pytest.raises(LocalProtocolError):
        line.ends[Role.PROXY].send(message)
    assert line.ends[Role.PROXY].data_to_send() == b""


def test_nothing_is_said_before_the_extension_is_agreed_on() -> None:
    with pytest.raises(LocalProtocolError, match="before"):
        Conversation(Role.VM).send(Message(Code.VM_NAME))


def test_every_state_can_be_reached_and_left() -> None:
    for table, start in ((conversation._PROXYING, Proxying.IDLE), (conversation._MIGRATING, Migrating.SETTLED)):
        reached = {start}
        for _ in table:
            reached |= {to for (state, _), to in table.items() if state in reached}
        assert reached == set(type(start))


@pytest.mark.parametrize(
    "text",
    [
        UUID,
        UUID.upper(),
        UUID.replace("-", ""),
        " 50 2c 1a 00 35 6f 2b 8d-90 ab 01 23 45 67 89 ff",
        "502c1a00356f2b8d-90ab0123456789ff",
    ],
)
def test_uuids_in_all_forms(text: str) -> None:
    assert extension.normal_uuid(text) == UUID


@pytest.mark.parametrize("text", ["", "x" * 32, UUID[:-1], UUID + "0", "0x" + UUID[2:], "٣" * 32, "_" * 32])
def test_what_is_no_uuid(text: str) -> None:
    with pytest.raises(ValueError, match="no UUID"):
        extension.normal_uuid(text)


def test_text_of_a_peer_is_fit_for_a_log() -> None:
    assert extension.printable(b"web\n\x1b[31m\xff" + b"x" * 500).startswith("web??[31m")
    assert len(extension.printable(b"x" * 500)) == 128


def test_a_service_uri_needs_a_direction() -> None:
    assert extension.service_uri(do_proxy("S", "vch://t")) == "vch://t"
    with pytest.raises(RemoteProtocolError, match="direction"):
        extension.service_uri(Message(Code.DO_PROXY, b"Xvch://t"))
