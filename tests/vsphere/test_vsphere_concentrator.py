"""The concentrator's streams over real sockets: every byte, flow control, lives and users that follow each other."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine

import pytest
import trustme
from vsphere_dialling import VM, dialled, exchange, fill, on_uvloop
from vsphere_esxi_port import KNOWN

from portlayer.drivers.vsphere.serial import Concentrator
from portlayer.drivers.vsphere.serial.extension import Code
from portlayer.errors import DriverError, InvalidArgumentError


async def test_every_byte_passes_both_ways(concentrator: Concentrator) -> None:
    host = await dialled(concentrator)
    streams = await concentrator.connect(VM)
    await exchange(streams, host)
    await exchange(streams, host, random.Random(1).randbytes(300_000))
    assert concentrator.is_connected(VM)
    await host.close()


async def test_connecting_waits_for_the_vm_and_can_be_called_off(concentrator: Concentrator) -> None:
    called_off = asyncio.create_task(concentrator.connect(VM))
    waiting = asyncio.create_task(concentrator.connect(VM))
    await asyncio.sleep(0)
    called_off.cancel()
    host = await dialled(concentrator)
    await exchange(await waiting, host)
    assert called_off.cancelled()
    await host.close()


async def test_a_new_user_takes_the_place_of_the_old_one(concentrator: Concentrator) -> None:
    host = await dialled(concentrator)
    reader, writer = await concentrator.connect(VM)
    second = await concentrator.connect(VM)
    assert await reader.read() == b""
    writer.write(b"from the past")
    with pytest.raises(ConnectionResetError):
        await writer.drain()
    writer.close()
    await exchange(second, host)
    await host.close()


async def test_the_stream_ends_with_the_vm_and_the_next_life_is_another(concentrator: Concentrator) -> None:
    host = await dialled(concentrator)
    reader, _ = await concentrator.connect(VM)
    host.write(b"last words")
    await host.close()
    assert await reader.read() == b"last words"
    await concentrator.wait_disconnected(VM)
    assert not concentrator.is_connected(VM)
    again = asyncio.create_task(concentrator.connect(VM))
    host = await dialled(concentrator)
    await exchange(await again, host)
    await host.close()


async def test_the_user_may_leave_and_the_vm_stays(concentrator: Concentrator) -> None:
    host = await dialled(concentrator)
    _, writer = await concentrator.connect(VM)
    writer.write(b"bye")
    writer.close()
    await writer.wait_closed()
    assert await host.read_exactly(3) == b"bye"
    host.write(b"x" * 3_000_000)
    await host.drain()
    streams = await concentrator.connect(VM)
    host.write(b"\xf5end")
    heard = b""
    while not heard.endswith(b"\xf5end"):
        heard = heard[-4:] + await streams[0].read(65536)
    await host.close()


async def test_a_vm_that_dials_anew_replaces_its_old_connection(concentrator: Concentrator) -> None:
    old = await dialled(concentrator)
    reader, _ = await concentrator.connect(VM)
    new = await dialled(concentrator)
    assert await reader.read() == b""
    assert await old.read() == b""
    await exchange(await concentrator.connect(VM), new)
    await old.close()
    await new.close()


async def test_a_user_that_does_not_read_makes_the_vm_wait(concentrator: Concentrator) -> None:
    host = await dialled(concentrator)
    reader, _ = await concentrator.connect(VM)
    total = await fill(host.write, host.drain)
    received = await reader.readexactly(total)
    assert received == (b"\xff" + bytes(65535)) * (total // 65536)
    await host.close()


async def test_a_vm_that_does_not_read_makes_the_user_wait(concentrator: Concentrator) -> None:
    host = await dialled(concentrator)
    _, writer = await concentrator.connect(VM)
    total = await fill(writer.write, writer.drain)
    assert writer.transport.get_write_buffer_size() > 0
    assert await host.read_exactly(1) == b"\xff"
    drained = asyncio.create_task(writer.drain())
    count = 1
    while count < total:
        count += len(await host.read())
    await drained
    await host.close()


async def test_where_it_listens_and_what_vms_are_told() -> None:
    with pytest.raises(InvalidArgumentError, match="ESXi hosts reach it"):
        Concentrator("0.0.0.0", 2377)
    first = Concentrator("0.0.0.0", 0, advertise="fd00::5")
    with pytest.raises(DriverError, match="not open"):
        _ = first.address
    await first.open()
    port = first.address[1]
    assert first.uri == f"telnet://[fd00::5]:{port}"
    second = Concentrator("127.0.0.1", port)
    with pytest.raises(DriverError, match="cannot listen"):
        await second.open()
    await second.close()
    await first.close()


@pytest.mark.parametrize(
    "test",
    [
        test_every_byte_passes_both_ways,
        test_a_user_that_does_not_read_makes_the_vm_wait,
        test_a_vm_that_does_not_read_makes_the_user_wait,
    ],
)
def test_on_the_loop_of_the_port_layer(test: Callable[..., Coroutine[None, None, None]], authority: trustme.CA) -> None:
    on_uvloop(test, authority)


async def test_throughput(concentrator: Concentrator) -> None:
    """Looks, and judges nothing: both ends and the concentrator share this process."""
    host = await dialled(concentrator)
    reader, writer = await concentrator.connect(VM)
    data = random.Random(4).randbytes(1 << 20)
    total = 16

    async def produce() -> None:
        for _ in range(total):
            host.write(data)
            await host.drain()

    began = time.perf_counter()
    producing = asyncio.create_task(produce())
    for _ in range(total):
        assert await reader.readexactly(len(data)) == data
    print(f"\nfrom the VM {total / (time.perf_counter() - began):.0f} MiB/s")  # noqa: T201
    await producing
    began = time.perf_counter()
    for _ in range(4):
        writer.write(data)
        await writer.drain()
        assert await host.read_exactly(len(data)) == data
    print(f"to the VM {4 / (time.perf_counter() - began):.0f} MiB/s")  # noqa: T201
    await host.close()
    assert frozenset(Code) == KNOWN
