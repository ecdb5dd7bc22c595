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
_ROUNDS, _ROUND_S = 100, 0.01
ALL_BYTES = bytes(range(256)) * 3 + b"\xff\xff\xff\xf0"


# More than any step of a test takes, in seconds. Where a time is to be over, the test says when: `expire`.
LONG_S = 60.0
_TIMES = {"identify_s": LONG_S, "vmotion_s": LONG_S, "drain_s": LONG_S}


@contextlib.asynccontextmanager
async def running(**options: object) -> AsyncIterator[Concentrator]:
    """An open concentrator that knows VM; asserts that nothing of it is left."""
    before = asyncio.all_tasks()
    concentrator = Concentrator("127.0.0.1", 0, **(_TIMES | options))  # type: ignore[arg-type]
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


async def fill(write: Callable[[bytes], None], drain: Callable[[], Coroutine[None, None, None]]) -> int:
    """Writes until the other side lets it wait; returns how much that was."""
    total = 0
    while total < 64 << 20:
        write(b"\xff" + bytes(65535))
        total += 65536
        draining = asyncio.ensure_future(drain())
        if not await settles(draining):
            draining.cancel()
            await asyncio.wait([draining])
            return total
    raise AssertionError("nobody is made to wait")


async def settles(work: asyncio.Future[None]) -> bool:
    """Whether it ends while everything that is under way goes on: both ends, and what is between, are in this loop.

    How often the loop goes round counts, not how long that takes.
    """
    for _ in range(_ROUNDS):
        if work.done():
            return True
        await asyncio.sleep(_ROUND_S)
    return work.done()


def expire(timer: asyncio.TimerHandle | None) -> None:
    """The time that it stands for is over."""
    assert timer is not None
    assert not timer.cancelled()
    timer._run()
    timer.cancel()


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
