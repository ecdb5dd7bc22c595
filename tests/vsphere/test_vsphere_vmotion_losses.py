"""vMotions that do not go as planned: whoever dies in the middle, comes late, falls silent or starts anew."""

from __future__ import annotations

import asyncio

from vsphere_dialling import VM, dialled, exchange, expire, running
from vsphere_vmotion import arrived, begun, completed, port_of
from vsphere_waiting import until

from portlayer.drivers.vsphere.serial import Concentrator
from portlayer.drivers.vsphere.serial.extension import Code, Message


async def test_the_source_dies_before_the_destination_comes(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    streams = await concentrator.connect(VM)
    cookie = await begun(source)
    source.write(b"last")
    assert await streams[0].readexactly(4) == b"last"
    await source.kill()
    streams[1].write(b"held")
    destination = await arrived(source, cookie)
    destination.send(Message(Code.VMOTION_COMPLETE))
    assert await destination.read_exactly(4) == b"held"
    await exchange(streams, destination)
    await destination.close()


async def test_the_source_dies_after_the_destination_came(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    streams = await concentrator.connect(VM)
    destination = await arrived(source, await begun(source))
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
    destination = await arrived(source, await begun(source))
    await source.kill()
    await destination.kill()
    assert await reader.read() == b""
    await concentrator.wait_disconnected(VM)


async def test_a_destination_dies_and_another_one_comes(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    streams = await concentrator.connect(VM)
    cookie = await begun(source)
    lost = await arrived(source, cookie)
    lost.write(b"never ran")
    await lost.kill()
    replaced = await arrived(source, cookie)
    destination = await arrived(source, cookie)
    assert await replaced.read() == b""
    source.write(b"still here")
    assert await streams[0].readexactly(10) == b"still here"
    await completed(source, destination, streams)
    await replaced.close()
    await destination.close()


async def test_nobody_comes_and_the_source_is_spoken_to_again(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    streams = await concentrator.connect(VM)
    cookie = await begun(source)
    streams[1].write(b"held")
    expire(port_of(concentrator)._deadline)
    assert await source.read_exactly(4) == b"held"
    await exchange(streams, source)
    destination = await arrived(source, cookie)
    await completed(source, destination, streams)
    await destination.close()


async def test_a_source_that_goes_on_without_a_word_is_spoken_to_again() -> None:
    """Its host gave up before it heard GOAHEAD."""
    async with running(drain_s=0.1) as concentrator, asyncio.timeout(60):
        source = await dialled(concentrator)
        streams = await concentrator.connect(VM)
        await begun(source)
        streams[1].write(b"held")
        source.write(b"running")
        assert await source.read_exactly(4) == b"held"
        assert await streams[0].readexactly(7) == b"running"
        await exchange(streams, source)
        source = await source.vmotion()
        await exchange(streams, source)
        await source.close()


async def test_a_destination_that_comes_late_is_waited_for_once_it_is_there(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    streams = await concentrator.connect(VM)
    cookie = await begun(source)
    streams[1].write(b"early")
    expire(port_of(concentrator)._deadline)
    assert await source.read_exactly(5) == b"early"
    destination = await arrived(source, cookie)
    streams[1].write(b"late")
    destination.send(Message(Code.VMOTION_COMPLETE))
    assert await destination.read_exactly(4) == b"late"
    await source.close()
    await destination.close()


async def test_nobody_comes_and_the_source_is_gone() -> None:
    async with running(vmotion_s=0.2) as concentrator, asyncio.timeout(60):
        source = await dialled(concentrator)
        reader, _ = await concentrator.connect(VM)
        await begun(source)
        await source.kill()
        assert await reader.read() == b""
        assert not concentrator.is_connected(VM)


async def test_a_source_that_does_not_hang_up_is_waited_for_a_while_only(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    streams = await concentrator.connect(VM)
    port = port_of(concentrator)
    destination = await arrived(source, await begun(source))
    destination.write(b"first")
    destination.send(Message(Code.VMOTION_COMPLETE))
    await until(lambda: port._drain)
    source.write(b"last")
    assert await streams[0].readexactly(4) == b"last"
    expire(port._drain)  # it has spoken meanwhile
    expire(port._drain)
    assert await streams[0].readexactly(5) == b"first"
    await exchange(streams, destination)
    await source.close()
    await destination.close()


async def test_a_slow_user_gets_all_of_the_source_before_the_destination(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    reader, _ = await concentrator.connect(VM)
    port = port_of(concentrator)
    destination = await arrived(source, await begun(source))
    source.write(b"s" * 1_500_000)
    destination.send(Message(Code.VMOTION_COMPLETE))
    destination.write(b"d" * 1_500_000)
    closing = asyncio.gather(source.close(), destination.close())
    user = port._user
    assert user is not None
    await until(lambda: port._drain and not user.is_reading())
    for _ in range(3):
        expire(port._drain)
    received = await reader.readexactly(3_000_000)
    assert received == b"s" * 1_500_000 + b"d" * 1_500_000
    await closing


async def test_the_destination_dies_before_the_source_is_heard_out(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    reader, _ = await concentrator.connect(VM)
    destination = await arrived(source, await begun(source))
    destination.send(Message(Code.VMOTION_COMPLETE))
    destination.write(b"its last")
    await destination.close()
    assert await reader.read() == b"its last"
    assert await source.read() == b""
    await source.close()


async def test_a_vm_that_starts_anew_during_a_vmotion_is_known_by_what_it_says(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    reader, _ = await concentrator.connect(VM)
    await begun(source)
    restarted = await dialled(concentrator)
    restarted.write(b"Linux version")
    assert await reader.read() == b""
    assert await source.read() == b""
    await exchange(await concentrator.connect(VM), restarted)
    await source.close()
    await restarted.close()


async def test_a_vm_that_starts_anew_during_a_vmotion_is_known_by_its_silence(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    reader, _ = await concentrator.connect(VM)
    await begun(source)
    restarted = await dialled(concentrator)
    [candidate] = port_of(concentrator)._candidates
    expire(candidate._patience)
    assert await reader.read() == b""
    await exchange(await concentrator.connect(VM), restarted)
    await source.close()
    await restarted.close()


async def test_a_vm_that_starts_anew_when_all_of_its_vmotion_are_gone(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    await concentrator.connect(VM)
    destination = await arrived(source, await begun(source))
    restarted = await dialled(concentrator)
    await source.kill()
    await destination.kill()
    port = port_of(concentrator)
    await until(lambda: port._inbound is not None and not port._candidates)
    assert not concentrator._entrance._unidentified
    await exchange(await concentrator.connect(VM), restarted)
    await restarted.close()
