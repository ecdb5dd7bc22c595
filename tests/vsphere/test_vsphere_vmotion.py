"""Streams through the concentrator while their VMs move to other hosts, whoever dies in the middle."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Coroutine

import pytest
import trustme
from vsphere_dialling import OTHER, TOKEN, VM, Streams, contexts, dialled, exchange, fill, host_of, on_uvloop, running
from vsphere_esxi_port import EsxiPort, Refused

from portlayer.drivers.vsphere.serial import Concentrator, migration
from portlayer.drivers.vsphere.serial.extension import Code, Message, do_proxy
from tether.wire import DataReceived, ResponseReceived, Role, Session, SessionLost, SessionOpened


async def _cookie(source: EsxiPort) -> bytes:
    answer = await source.begin(b"\xff\x00seq")
    assert answer.code is Code.VMOTION_GOAHEAD
    assert answer.body.startswith(b"\xff\x00seq")
    assert len(answer.body) == 5 + migration.SECRET_BYTES
    return answer.body


async def _arrived(source: EsxiPort, cookie: bytes) -> EsxiPort:
    destination = source.twin()
    await destination.open()
    await destination.present(cookie)
    return destination


async def _completed(source: EsxiPort, destination: EsxiPort, streams: Streams) -> None:
    """The VM runs on at its destination, and is spoken with there."""
    destination.send(Message(Code.VMOTION_COMPLETE))
    await source.close()
    await exchange(streams, destination)


async def test_a_stream_survives_many_vmotions_without_a_byte_lost_or_doubled(concentrator: Concentrator) -> None:
    chance = random.Random(3)
    host = await dialled(concentrator)
    reader, writer = await concentrator.connect(VM)
    up, down = chance.randbytes(600_000), chance.randbytes(600_000)

    async def send_down() -> None:
        for start in range(0, len(down), 5000):
            writer.write(down[start : start + 5000])
            await writer.drain()

    user = asyncio.gather(send_down(), reader.readexactly(len(up)))
    received = bytearray()
    position = 0
    while position < len(up):
        size = chance.randint(1, 40_000)
        host.write(up[position : position + size])
        position += size
        if chance.random() < 0.5:
            source = host
            host = await source.vmotion()
            received += source._received
        received += host._received
        host._received.clear()
        async with host._changed:
            host._changed.notify_all()
        await asyncio.sleep(0)
    while len(received) < len(down):
        received += await host.read()
    assert (await user)[1] == up
    assert bytes(received) == down
    await host.close()
    assert await reader.read() == b""


async def test_bytes_are_held_back_and_then_go_to_the_destination_in_order(concentrator: Concentrator) -> None:
    concentrator._admissions.port(VM)._drain_s = 60  # A is on its way, however slow this machine is
    source = await dialled(concentrator)
    reader, writer = await concentrator.connect(VM)
    writer.write(b"1")
    cookie = await _cookie(source)
    writer.write(b"2")
    source.write(b"A")
    destination = await _arrived(source, cookie)
    writer.write(b"3")
    destination.write(b"C")
    source.write(b"B")
    destination.send(Message(Code.VMOTION_COMPLETE))
    assert await source.read() == b"1"
    assert await source.read() == b"", "after COMPLETE the source is told that nothing more comes"
    assert await destination.read_exactly(2) == b"23"
    assert await reader.readexactly(2) == b"AB"
    await source.close()
    assert await reader.readexactly(1) == b"C"
    await exchange((reader, writer), destination)
    await destination.close()


async def test_the_user_waits_when_much_is_held_back(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    _, writer = await concentrator.connect(VM)
    cookie = await _cookie(source)
    total = await fill(writer.write, writer.drain)
    assert total <= 256 * 1024
    assert writer.transport.get_write_buffer_size() == total
    destination = await _arrived(source, cookie)
    destination.send(Message(Code.VMOTION_COMPLETE))
    assert len(await destination.read_exactly(total)) == total
    await writer.drain()
    await source.close()
    await destination.close()


async def test_abort_returns_to_the_source(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    streams = await concentrator.connect(VM)
    cookie = await _cookie(source)
    destination = await _arrived(source, cookie)
    destination.write(b"never ran")
    streams[1].write(b"held")
    source.send(Message(Code.VMOTION_ABORT))
    assert await source.read_exactly(4) == b"held"
    assert await destination.read() == b""
    await exchange(streams, source)
    late = source.twin()
    await late.dial()
    with pytest.raises(Refused):
        await late.present(cookie)
    source = await source.vmotion()
    await exchange(streams, source)
    for host in (source, destination, late):
        await host.close()


async def test_a_destination_may_come_without_asking_to_be_carried(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    streams = await concentrator.connect(VM)
    cookie = await _cookie(source)
    destination = source.twin()
    await destination.dial()
    await destination.present(cookie)
    destination.send(Message(Code.VMOTION_COMPLETE))
    destination.send(do_proxy("C", f"vch://{TOKEN}"))
    await destination._answer(Code.WILL_PROXY)
    await source.close()
    await exchange(streams, destination)
    await destination.close()


@pytest.mark.parametrize("uuid", [VM, OTHER])
async def test_wrong_secrets_and_wrong_vms_are_refused(concentrator: Concentrator, uuid: str) -> None:
    concentrator.admit(OTHER, TOKEN)
    source = await dialled(concentrator)
    streams = await concentrator.connect(VM)
    cookie = await _cookie(source)
    stranger = await dialled(concentrator, vc_uuid=uuid)
    with pytest.raises(Refused, match="UNKNOWN_SUBOPTION_RCVD_2"):
        await stranger.present(cookie if uuid == OTHER else cookie[:-1] + bytes([cookie[-1] ^ 1]))
    assert await stranger.read() == b""
    destination = await _arrived(source, cookie)
    await _completed(source, destination, streams)
    await stranger.close()
    await destination.close()


async def test_a_peer_without_any_vmotion_is_refused(concentrator: Concentrator) -> None:
    early = host_of(concentrator)
    await early.dial()
    with pytest.raises(Refused):
        await early.present(b"seq" + secrets.token_bytes(4))
    await early.close()


async def test_wrong_guesses_do_not_keep_a_destination_out(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    streams = await concentrator.connect(VM)
    cookie = await _cookie(source)
    for _ in range(1000):
        assert concentrator._admissions.migrations.find(cookie[:-8] + secrets.token_bytes(8)) is None
    destination = await _arrived(source, cookie)
    await _completed(source, destination, streams)
    await destination.close()


async def test_a_second_begin_voids_the_first_until_a_destination_is_there(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    streams = await concentrator.connect(VM)
    first = await _cookie(source)
    second = await _cookie(source)
    assert first != second
    late = source.twin()
    await late.open()
    with pytest.raises(Refused):
        await late.present(first)
    destination = await _arrived(source, second)
    assert (await source.begin()).code is Code.VMOTION_NOTNOW
    await _completed(source, destination, streams)
    for host in (late, destination):
        await host.close()


async def test_begin_of_nobody_is_not_now(concentrator: Concentrator) -> None:
    host = host_of(concentrator)
    await host.dial()
    assert (await host.begin()).code is Code.VMOTION_NOTNOW
    host.send(Message(Code.VMOTION_ABORT))
    host.send(do_proxy("C", f"vch://{TOKEN}"))
    await host._answer(Code.WILL_PROXY)
    await host.close()


async def test_the_source_dies_before_the_destination_comes(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    streams = await concentrator.connect(VM)
    cookie = await _cookie(source)
    source.write(b"last")
    assert await streams[0].readexactly(4) == b"last"
    await source.kill()
    streams[1].write(b"held")
    destination = await _arrived(source, cookie)
    destination.send(Message(Code.VMOTION_COMPLETE))
    assert await destination.read_exactly(4) == b"held"
    await exchange(streams, destination)
    await destination.close()


async def test_the_source_dies_after_the_destination_came(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    streams = await concentrator.connect(VM)
    destination = await _arrived(source, await _cookie(source))
    destination.write(b"here")
    await source.kill()
    assert await streams[0].readexactly(4) == b"here"
    streams[1].write(b"held")
    destination.send(Message(Code.VMOTION_COMPLETE))
    assert await destination.read_exactly(4) == b"held"
    await exchange(streams, destination)
    await destination.close()


async def test_source_and_destination_die(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    reader, _ = await concentrator.connect(VM)
    destination = await _arrived(source, await _cookie(source))
    await source.kill()
    await destination.kill()
    assert await reader.read() == b""
    await concentrator.wait_disconnected(VM)


async def test_a_destination_dies_and_another_one_comes(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    streams = await concentrator.connect(VM)
    cookie = await _cookie(source)
    lost = await _arrived(source, cookie)
    lost.write(b"never ran")
    await lost.kill()
    replaced = await _arrived(source, cookie)
    destination = await _arrived(source, cookie)
    assert await replaced.read() == b""
    source.write(b"still here")
    assert await streams[0].readexactly(10) == b"still here"
    await _completed(source, destination, streams)
    await replaced.close()
    await destination.close()


async def test_nobody_comes_and_the_source_is_spoken_to_again() -> None:
    async with running(vmotion_s=0.2) as concentrator, asyncio.timeout(60):
        source = await dialled(concentrator)
        streams = await concentrator.connect(VM)
        cookie = await _cookie(source)
        streams[1].write(b"held")
        assert await source.read_exactly(4) == b"held"
        await exchange(streams, source)
        destination = await _arrived(source, cookie)
        await _completed(source, destination, streams)
        await destination.close()


async def test_a_source_that_goes_on_without_a_word_is_spoken_to_again() -> None:
    """Its host gave up before it heard GOAHEAD."""
    async with running(drain_s=0.1) as concentrator, asyncio.timeout(60):
        source = await dialled(concentrator)
        streams = await concentrator.connect(VM)
        await _cookie(source)
        streams[1].write(b"held")
        source.write(b"running")
        assert await source.read_exactly(4) == b"held"
        assert await streams[0].readexactly(7) == b"running"
        await exchange(streams, source)
        source = await source.vmotion()
        await exchange(streams, source)
        await source.close()


async def test_a_destination_that_comes_late_is_waited_for_once_it_is_there() -> None:
    async with running(vmotion_s=0.2) as concentrator, asyncio.timeout(60):
        source = await dialled(concentrator)
        streams = await concentrator.connect(VM)
        cookie = await _cookie(source)
        streams[1].write(b"early")
        assert await source.read_exactly(5) == b"early"
        concentrator._admissions.port(VM)._vmotion_s = 60
        destination = await _arrived(source, cookie)
        streams[1].write(b"late")
        destination.send(Message(Code.VMOTION_COMPLETE))
        assert await destination.read_exactly(4) == b"late"
        await source.close()
        await destination.close()


async def test_nobody_comes_and_the_source_is_gone() -> None:
    async with running(vmotion_s=0.2) as concentrator, asyncio.timeout(60):
        source = await dialled(concentrator)
        reader, _ = await concentrator.connect(VM)
        await _cookie(source)
        await source.kill()
        assert await reader.read() == b""
        assert not concentrator.is_connected(VM)


async def test_a_source_that_does_not_hang_up_is_waited_for_a_while_only() -> None:
    async with running(drain_s=0.2) as concentrator, asyncio.timeout(60):
        source = await dialled(concentrator)
        streams = await concentrator.connect(VM)
        destination = await _arrived(source, await _cookie(source))
        destination.send(Message(Code.VMOTION_COMPLETE))
        source.write(b"last")
        destination.write(b"first")
        assert await streams[0].readexactly(9) == b"lastfirst"
        await exchange(streams, destination)
        await source.close()
        await destination.close()


async def test_a_slow_user_gets_all_of_the_source_before_the_destination() -> None:
    async with running(drain_s=0.2) as concentrator, asyncio.timeout(60):
        source = await dialled(concentrator)
        reader, _ = await concentrator.connect(VM)
        destination = await _arrived(source, await _cookie(source))
        source.write(b"s" * 1_500_000)
        destination.send(Message(Code.VMOTION_COMPLETE))
        destination.write(b"d" * 1_500_000)
        closing = asyncio.gather(source.close(), destination.close())
        await asyncio.sleep(0.6)
        received = await reader.readexactly(3_000_000)
        assert received == b"s" * 1_500_000 + b"d" * 1_500_000
        await closing


async def test_the_destination_dies_before_the_source_is_heard_out(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    reader, _ = await concentrator.connect(VM)
    destination = await _arrived(source, await _cookie(source))
    destination.send(Message(Code.VMOTION_COMPLETE))
    destination.write(b"its last")
    await destination.close()
    assert await reader.read() == b"its last"
    assert await source.read() == b""
    await source.close()


async def test_a_destination_that_says_much_before_complete_is_taken_to_run(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    streams = await concentrator.connect(VM)
    destination = await _arrived(source, await _cookie(source))
    destination.write(bytes(400_000))
    assert await source.read() == b""
    await source.close()
    assert await streams[0].readexactly(400_000) == bytes(400_000)
    destination.send(Message(Code.VMOTION_COMPLETE))
    await exchange(streams, destination)
    await destination.close()


async def test_a_vm_that_starts_anew_during_a_vmotion_is_known_by_what_it_says(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    reader, _ = await concentrator.connect(VM)
    await _cookie(source)
    restarted = await dialled(concentrator)
    restarted.write(b"Linux version")
    assert await reader.read() == b""
    assert await source.read() == b""
    await exchange(await concentrator.connect(VM), restarted)
    await source.close()
    await restarted.close()


async def test_a_vm_that_starts_anew_during_a_vmotion_is_known_by_its_silence() -> None:
    async with running(identify_s=0.3) as concentrator, asyncio.timeout(60):
        source = await dialled(concentrator)
        reader, _ = await concentrator.connect(VM)
        await _cookie(source)
        restarted = await dialled(concentrator)
        assert await reader.read() == b""
        await exchange(await concentrator.connect(VM), restarted)
        await source.close()
        await restarted.close()


async def test_a_vm_that_starts_anew_when_all_of_its_vmotion_are_gone(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    await concentrator.connect(VM)
    destination = await _arrived(source, await _cookie(source))
    restarted = await dialled(concentrator)
    await source.kill()
    await destination.kill()
    port = concentrator._admissions.port(VM)
    while port._inbound is None or port._candidates:
        await asyncio.sleep(0.01)
    assert not concentrator._entrance._unidentified
    await exchange(await concentrator.connect(VM), restarted)
    await restarted.close()


async def test_a_user_may_come_in_the_middle_of_a_vmotion(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    _, first = await concentrator.connect(VM)
    cookie = await _cookie(source)
    first.write(b"of a user that is gone")
    streams = await concentrator.connect(VM)
    destination = await _arrived(source, cookie)
    await _completed(source, destination, streams)
    await destination.close()


async def test_over_tls_with_a_vmotion(authority: trustme.CA) -> None:
    server, client = contexts(authority)
    async with running(tls=server, drain_s=0.1) as concentrator, asyncio.timeout(60):
        assert concentrator.uri == f"telnets://127.0.0.1:{concentrator.address[1]}"
        host = await dialled(concentrator, tls=client)
        streams = await concentrator.connect(VM)
        await exchange(streams, host, random.Random(2).randbytes(1_000_000))
        host.write(b"before")
        host = await host.vmotion()
        host.write(b"after")
        assert await streams[0].readexactly(11) == b"beforeafter"
        await exchange(streams, host)
        await host.close()
        assert await streams[0].read() == b""


class _Agent:
    """tether.wire's guest end in a VM that moves after every 20 messages: answers each of a call with the same."""

    def __init__(self, host: EsxiPort) -> None:
        self.host = host
        self.session = Session(Role.GUEST)
        self.lost = 0
        self.moved = 0

    async def run(self) -> None:
        messages = 0
        self._flush()
        while data := await self.host.read():
            for event in self.session.receive_data(data):
                if isinstance(event, DataReceived):
                    messages += 1
                    self.session.send_data(event.stream_id, event.payload)
                    if event.end:
                        self.session.send_response(event.stream_id, b"done")
                self.lost += isinstance(event, SessionLost)
            self._flush()
            if messages > 20 * (self.moved + 1):
                await self._move()

    async def _move(self) -> None:
        """The VM runs on at the destination with what its UART had received."""
        source = self.host
        self.host = await source.vmotion()
        self.host._received[:0] = source._received
        self.moved += 1

    def _flush(self) -> None:
        self.host.write(self.session.data_to_send())


async def test_a_session_with_an_agent_survives_vmotions(concentrator: Concentrator) -> None:
    agent = _Agent(await dialled(concentrator))
    reader, writer = await concentrator.connect(VM)
    running_agent = asyncio.create_task(agent.run())
    session = Session(Role.HOST)
    session.connect()
    sent = [random.Random(n).randbytes(3000) for n in range(200)]
    got: list[bytes] = []
    stream = 0
    ended = False
    while not ended:
        writer.write(session.data_to_send())
        for event in session.receive_data(await reader.read(65536)):
            assert not isinstance(event, SessionLost)
            if isinstance(event, SessionOpened):
                stream = session.send_request("s", "m", b"", more=True)
                for payload in sent[:10]:
                    session.send_data(stream, payload)
            elif isinstance(event, DataReceived):
                got.append(event.payload)
                if (following := len(got) + 9) < len(sent):
                    session.send_data(stream, sent[following], end=following == len(sent) - 1)
            ended = isinstance(event, ResponseReceived)
    assert got == sent
    assert agent.lost == 0
    assert agent.moved > 2
    await agent.host.close()
    await running_agent


@pytest.mark.parametrize(
    "test",
    [
        test_a_stream_survives_many_vmotions_without_a_byte_lost_or_doubled,
        test_bytes_are_held_back_and_then_go_to_the_destination_in_order,
        test_over_tls_with_a_vmotion,
        test_a_session_with_an_agent_survives_vmotions,
    ],
)
def test_on_the_loop_of_the_port_layer(test: Callable[..., Coroutine[None, None, None]], authority: trustme.CA) -> None:
    on_uvloop(test, authority)
