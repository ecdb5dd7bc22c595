"""The concentrator and ESXi hosts that dial it, over real sockets: admission, streams, vMotion, misbehaving hosts."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import random
import secrets
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine

import pytest
import trustme
import uvloop
from vsphere_esxi_port import KNOWN, EsxiPort, Refused

from portlayer.drivers.vsphere.serial import Concentrator, migration
from portlayer.drivers.vsphere.serial.extension import Code, Message, do_proxy
from portlayer.errors import DriverError, InvalidArgumentError
from tether.wire import DataReceived, ResponseReceived, Role, Session, SessionLost, SessionOpened

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


@pytest.fixture
async def concentrator() -> AsyncIterator[Concentrator]:
    async with running() as made:
        # Fixture and test are tasks of their own.
        watchdog = asyncio.get_running_loop().call_later(60, lambda: [task.cancel() for task in asyncio.all_tasks()])
        yield made
        watchdog.cancel()


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


# --- streams


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


# --- flow control


async def _fill(write: object, drain: object) -> int:
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


async def test_a_user_that_does_not_read_makes_the_vm_wait(concentrator: Concentrator) -> None:
    host = await dialled(concentrator)
    reader, _ = await concentrator.connect(VM)
    total = await _fill(host.write, host.drain)
    received = await reader.readexactly(total)
    assert received == (b"\xff" + bytes(65535)) * (total // 65536)
    await host.close()


async def test_a_vm_that_does_not_read_makes_the_user_wait(concentrator: Concentrator) -> None:
    host = await dialled(concentrator)
    _, writer = await concentrator.connect(VM)
    total = await _fill(writer.write, writer.drain)
    assert writer.transport.get_write_buffer_size() > 0
    assert await host.read_exactly(1) == b"\xff"
    drained = asyncio.create_task(writer.drain())
    count = 1
    while count < total:
        count += len(await host.read())
    await drained
    await host.close()


# --- who may dial in


@pytest.mark.parametrize(
    "options",
    [
        {"service_uri": "vch://" + "f" * 32},
        {"service_uri": f"telnet://{TOKEN}"},
        {"service_uri": ""},
        {"vc_uuid": OTHER},
        {"service_uri": "vch://" + "f" * 32, "vc_uuid": None},
        {"service_uri": f"vch://{TOKEN}\N{SNOWMAN}"},
    ],
)
async def test_who_is_not_admitted_is_refused(concentrator: Concentrator, options: dict[str, object]) -> None:
    host = host_of(concentrator, **options)
    with pytest.raises(Refused, match="WONT_PROXY"):
        await host.open()
    assert await host.read() == b""
    assert not concentrator.is_connected(VM)
    await host.close()


@pytest.mark.parametrize(
    "options",
    [
        {"service_uri": f"vch://{TOKEN}/"},
        {"vc_uuid": None},
        {"vc_uuid": None, "knows": frozenset({Code.DO_PROXY, Code.WILL_PROXY})},
    ],
    ids=["slash", "empty", "no-uuids"],
)
async def test_hosts_that_tell_less(concentrator: Concentrator, options: dict[str, object]) -> None:
    host = await dialled(concentrator, **options)
    await exchange(await concentrator.connect(VM), host)
    await host.close()


async def test_a_host_that_does_not_understand_the_question_for_its_uuid(concentrator: Concentrator) -> None:
    host = host_of(concentrator)
    host._identify = lambda message: (  # type: ignore[method-assign]
        host.send(Message(Code.UNKNOWN_SUBOPTION_RCVD_1, bytes([message.code])))
        if message.code is Code.GET_VM_VC_UUID
        else None
    )
    await host.open()
    await exchange(await concentrator.connect(VM), host)
    await host.close()


async def test_clones_dial_with_their_parents_token(concentrator: Concentrator) -> None:
    concentrator.admit(OTHER, TOKEN)
    parent, clone = await dialled(concentrator), await dialled(concentrator, vc_uuid=OTHER)
    streams = await concentrator.connect(VM), await concentrator.connect(OTHER)
    await exchange(streams[0], parent, b"parent")
    await exchange(streams[1], clone, b"clone")
    own = "f" * 32
    concentrator.admit(OTHER, own)
    concentrator.revoke(OTHER, TOKEN)
    reconfigured = await dialled(concentrator, vc_uuid=OTHER, service_uri=f"vch://{own}")
    assert await streams[1][0].read() == b""
    await exchange(await concentrator.connect(OTHER), reconfigured)
    with pytest.raises(Refused):
        await dialled(concentrator, vc_uuid=OTHER)
    for host in (parent, clone, reconfigured):
        await host.close()


async def test_a_token_of_several_vms_needs_a_uuid_with_it(concentrator: Concentrator) -> None:
    concentrator.admit(OTHER, TOKEN)
    with pytest.raises(Refused):
        await dialled(concentrator, vc_uuid=None)


async def test_dismissal_ends_streams_and_waiting(concentrator: Concentrator) -> None:
    host = await dialled(concentrator)
    reader, _ = await concentrator.connect(VM)
    concentrator.admit(OTHER, "e" * 32)
    waiting = asyncio.create_task(concentrator.connect(OTHER))
    await asyncio.sleep(0)
    concentrator.dismiss(OTHER)
    concentrator.dismiss(VM)
    concentrator.dismiss(VM)
    assert await reader.read() == b""
    assert await host.read() == b""
    with pytest.raises(DriverError, match="any more"):
        await waiting
    with pytest.raises(DriverError, match="not admitted"):
        await concentrator.connect(VM)
    with pytest.raises(Refused):
        await dialled(concentrator)
    await host.close()


async def test_names_that_make_no_sense_are_told(concentrator: Concentrator) -> None:
    with pytest.raises(InvalidArgumentError, match="32 hexadecimal"):
        concentrator.admit(VM, "secret")
    with pytest.raises(InvalidArgumentError, match="no UUID"):
        concentrator.admit("web", TOKEN)
    assert concentrator.is_connected(VM.upper()) is False


# --- addresses


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


# --- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def _contexts(authority: trustme.CA) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    return server, client


async def test_over_tls_with_a_vmotion(authority: trustme.CA) -> None:
    server, client = _contexts(authority)
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


async def test_who_speaks_no_tls_or_nothing_is_counted_and_cut_off(authority: trustme.CA) -> None:
    server, client = _contexts(authority)
    async with running(tls=server, max_unidentified=2) as concentrator, asyncio.timeout(60):
        reader, writer = await asyncio.open_connection(*concentrator.address)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        silent = [await asyncio.open_connection(*concentrator.address) for _ in range(3)]
        with contextlib.suppress(ConnectionError):
            assert await silent[0][0].read() == b""
        host = await dialled(concentrator, tls=client)
        with contextlib.suppress(ConnectionError):
            assert await silent[1][0].read() == b""
        await exchange(await concentrator.connect(VM), host)
        for _, other in [(reader, writer), *silent]:
            other.close()
            with contextlib.suppress(ConnectionError):
                await other.wait_closed()
        await host.close()


# --- hosts that misbehave


async def test_only_so_many_may_hesitate_and_the_oldest_goes() -> None:
    async with running(max_unidentified=2) as concentrator, asyncio.timeout(60):
        hesitant = [host_of(concentrator) for _ in range(3)]
        for host in hesitant:
            await host.dial()
        assert await hesitant[0].read() == b""
        for host in hesitant[1:]:
            host.send(do_proxy("C", f"vch://{TOKEN}"))
        await concentrator.wait_connected(VM)
        for host in hesitant:
            await host.close()


async def test_who_does_not_say_in_time_for_whom_it_speaks_is_cut_off() -> None:
    async with running(identify_s=0.1) as concentrator, asyncio.timeout(60):
        host = host_of(concentrator)
        await host.dial()
        assert await host.read() == b""
        await host.close()
        known = await dialled(concentrator)
        streams = await concentrator.connect(VM)
        await asyncio.sleep(0.3)
        await exchange(streams, known)
        await known.close()


async def test_when_descriptors_run_out_who_is_not_known_gives_way(
    concentrator: Concentrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    accept, failures = loop.sock_accept, [errno.ECONNABORTED, errno.EMFILE]

    async def failing(listener: socket.socket) -> tuple[socket.socket, object]:
        if failures:
            raise OSError(failures.pop(0), "made up")
        return await accept(listener)

    known = await dialled(concentrator)
    streams = await concentrator.connect(VM)
    monkeypatch.setattr(loop, "sock_accept", failing)
    hesitant = host_of(concentrator)
    # What waits in accept now was called before.
    with contextlib.suppress(Refused):
        await hesitant.dial()
    assert await hesitant.read() == b""
    assert not failures
    await exchange(streams, known)
    again = await dialled(concentrator)
    for host in (known, hesitant, again):
        await host.close()


@pytest.mark.parametrize(
    "attack",
    [
        b"\xff\xf0",
        b"\xff\xfa\xe8" + b"x" * 100_000,
        b"\xff\xfa\xe8\x47\xff\xf0",
        b"\xff\xfa\xe8\x2e\xff\xf0",
        b"\xff\xfa\xe8\x50" + OTHER.encode() + b"\xff\xf0",
        b"\xff\xfa\xe8\x50no uuid\xff\xf0",
        b"\xff\xfd\x63" * 1000,
    ],
)
async def test_what_breaks_the_protocol_ends_that_connection_alone(concentrator: Concentrator, attack: bytes) -> None:
    concentrator.admit(OTHER, TOKEN)
    good, bad = await dialled(concentrator, vc_uuid=OTHER), await dialled(concentrator)
    streams = await concentrator.connect(OTHER)
    reader, _ = await concentrator.connect(VM)
    bad.send_raw(attack)
    assert await reader.read() == b""
    await concentrator.wait_disconnected(VM)
    await exchange(streams, good)
    await bad.close()
    await good.close()


# --- vMotion


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
    total = await _fill(writer.write, writer.drain)
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
    destination.send(Message(Code.VMOTION_COMPLETE))
    await source.close()
    await exchange(streams, destination)
    await stranger.close()
    await destination.close()


async def test_a_peer_without_any_vmotion_is_refused(concentrator: Concentrator) -> None:
    early = host_of(concentrator)
    await early.dial()
    with pytest.raises(Refused):
        await early.present(b"seq" + secrets.token_bytes(4))
    await early.close()


async def test_guessing_a_secret_does_not_pay(concentrator: Concentrator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "MAX_GUESSES", 3)
    source = await dialled(concentrator)
    cookie = await _cookie(source)
    for attempt in (b"a", b"b", b"c", cookie):
        guesser = host_of(concentrator)
        await guesser.dial()
        with pytest.raises(Refused):
            await guesser.present(attempt)
        await guesser.close()
    await source.close()


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
    destination.send(Message(Code.VMOTION_COMPLETE))
    await source.close()
    await exchange(streams, destination)
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
    destination.send(Message(Code.VMOTION_COMPLETE))
    await source.close()
    await exchange(streams, destination)
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
        destination.send(Message(Code.VMOTION_COMPLETE))
        await source.close()
        await exchange(streams, destination)
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


async def test_a_user_may_come_in_the_middle_of_a_vmotion(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    _, first = await concentrator.connect(VM)
    cookie = await _cookie(source)
    first.write(b"of a user that is gone")
    streams = await concentrator.connect(VM)
    destination = await _arrived(source, cookie)
    destination.send(Message(Code.VMOTION_COMPLETE))
    await source.close()
    await exchange(streams, destination)
    await destination.close()


# --- the agent's protocol on top


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
        test_every_byte_passes_both_ways,
        test_a_user_that_does_not_read_makes_the_vm_wait,
        test_a_vm_that_does_not_read_makes_the_user_wait,
        test_a_stream_survives_many_vmotions_without_a_byte_lost_or_doubled,
        test_bytes_are_held_back_and_then_go_to_the_destination_in_order,
        test_over_tls_with_a_vmotion,
        test_who_speaks_no_tls_or_nothing_is_counted_and_cut_off,
        test_a_session_with_an_agent_survives_vmotions,
    ],
)
def test_on_the_loop_of_the_port_layer(test: Callable[..., Coroutine[None, None, None]], authority: trustme.CA) -> None:
    """The port layer runs on uvloop, whose transports are not asyncio's."""

    async def run() -> None:
        if "authority" in inspect.signature(test).parameters:
            await test(authority)
        else:
            async with running() as concentrator, asyncio.timeout(60):
                await test(concentrator)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


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
