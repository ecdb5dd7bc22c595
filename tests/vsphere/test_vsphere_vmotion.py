"""Streams through the concentrator while their VMs move to other hosts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine

import pytest
import trustme
from vsphere_dialling import VM, contexts, dialled, exchange, fill, on_uvloop, running
from vsphere_esxi_port import EsxiPort, Refused
from vsphere_vmotion import arrived, begun, completed

from portlayer.drivers.vsphere.serial import Concentrator
from portlayer.drivers.vsphere.serial.extension import Code, Message
from tether.wire import DataReceived, ResponseReceived, Role, Session, SessionLost, SessionOpened


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
    source = await dialled(concentrator)
    reader, writer = await concentrator.connect(VM)
    writer.write(b"1")
    cookie = await begun(source)
    writer.write(b"2")
    source.write(b"A")
    destination = await arrived(source, cookie)
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
    cookie = await begun(source)
    total = await fill(writer.write, writer.drain)
    assert total <= 256 * 1024
    assert writer.transport.get_write_buffer_size() == total
    destination = await arrived(source, cookie)
    destination.send(Message(Code.VMOTION_COMPLETE))
    assert len(await destination.read_exactly(total)) == total
    await writer.drain()
    await source.close()
    await destination.close()


async def test_abort_returns_to_the_source(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    streams = await concentrator.connect(VM)
    cookie = await begun(source)
    destination = await arrived(source, cookie)
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


async def test_a_destination_that_says_much_before_complete_is_taken_to_run(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    streams = await concentrator.connect(VM)
    destination = await arrived(source, await begun(source))
    destination.write(bytes(400_000))
    assert await source.read() == b""
    await source.close()
    assert await streams[0].readexactly(400_000) == bytes(400_000)
    destination.send(Message(Code.VMOTION_COMPLETE))
    await exchange(streams, destination)
    await destination.close()


async def test_a_user_may_come_in_the_middle_of_a_vmotion(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    _, first = await concentrator.connect(VM)
    cookie = await begun(source)
    first.write(b"of a user that is gone")
    streams = await concentrator.connect(VM)
    destination = await arrived(source, cookie)
    await completed(source, destination, streams)
    await destination.close()


async def test_over_tls_with_a_vmotion(authority: trustme.CA) -> None:
    server, client = contexts(authority)
    async with running(tls=server) as concentrator, asyncio.timeout(60):
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
