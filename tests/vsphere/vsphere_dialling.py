"""A concentrator, and ESXi hosts that dial it over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine

import trustme
import uvloop
from vsphere_esxi_port import EsxiPort

from portlayer.drivers.vsphere.serial import Concentrator

VM = "502c1a00-356f-2b8d-90ab-0123456789ff"
OTHER = "502c1a00-356f-2b8d-90ab-000000000000"
TOKEN = "0123456789abcdef0123456789abcdef"
ALL_BYTES = bytes(range(256)) * 3 + b"\xff\xff\xff\xf0"


@contextlib.asynccontextmanager
async def running(**options: object) -> AsyncIterator[Concentrator]:
    """An open concentrator that knows VM; asserts that nothing of it is left."""
    before = asyncio.all_tasks()
    concentrator = Concentrator("127.0.0.1", 0, **options)  # type: ignore[arg-type]
    await concentrator.open()
    concentrator.admit(VM, TOKEN)
    concentrator.serve()
    try:
        yield concentrator
    finally:
        async with asyncio.timeout(20):
            await concentrator.close()
            while asyncio.all_tasks() - before - {asyncio.current_task()}:
                await asyncio.sleep(0.01)
        assert not concentrator._entrance._doors
        assert not concentrator._entrance._unidentified
        assert not concentrator._admissions.migrations._expected


def host_of(concentrator: Concentrator, **options: object) -> EsxiPort:
    given = {"service_uri": f"vch://{TOKEN}", "vc_uuid": VM, "name": "web-0123", **options}
    return EsxiPort(*concentrator.address, **given)  # type: ignore[arg-type]


async def dialled(concentrator: Concentrator, **options: object) -> EsxiPort:
    host = host_of(concentrator, **options)
    await host.open()
    return host


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def exchange(streams: Streams, host: EsxiPort, data: bytes = ALL_BYTES) -> None:
    """Both ways, and nothing but that."""
    reader, writer = streams
    host.write(data)
    assert await reader.readexactly(len(data)) == data
    writer.write(data)
    await writer.drain()
    assert await host.read_exactly(len(data)) == data


async def fill(write: object, drain: object) -> int:
    """Writes until the other side lets it wait; returns how much that was."""
    total = 0
    with contextlib.suppress(TimeoutError):
        while total < 64 << 20:
            write(b"\xff" + bytes(65535))  # type: ignore[operator]
            total += 65536
            async with asyncio.timeout(0.5):
                await drain()  # type: ignore[operator]
    assert total < 64 << 20
    return total


def contexts(authority: trustme.CA) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    return server, client


def on_uvloop(test: Callable[..., Coroutine[None, None, None]], authority: trustme.CA) -> None:
    """Runs a test on the loop of the port layer, whose transports are not asyncio's."""

    async def run() -> None:
        if "authority" in inspect.signature(test).parameters:
            await test(authority)
        else:
            async with running() as concentrator, asyncio.timeout(60):
                await test(concentrator)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
