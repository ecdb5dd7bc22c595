"""Who may dial in to the concentrator, and what becomes of hosts that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Coroutine

import pytest
import trustme
from vsphere_dialling import OTHER, TOKEN, VM, contexts, dialled, exchange, host_of, on_uvloop, running
from vsphere_esxi_port import Refused
from vsphere_vmotion import port_of
from vsphere_waiting import until

from portlayer.drivers.vsphere.serial import Concentrator
from portlayer.drivers.vsphere.serial.connection import HostConnection
from portlayer.drivers.vsphere.serial.extension import Code, Message, do_proxy
from portlayer.errors import DriverError, InvalidArgumentError


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


async def test_who_floods_the_concentrator_keeps_nobody_else_out() -> None:
    async with running(max_unidentified=3) as concentrator, asyncio.timeout(60):
        host = host_of(concentrator)
        await host.dial()
        flood = [await asyncio.open_connection(*concentrator.address, local_addr=("127.0.0.2", 0)) for _ in range(5)]
        for reader, _ in flood[:3]:
            with contextlib.suppress(ConnectionError):
                while await reader.read(100):
                    pass
        host.send(do_proxy("C", f"vch://{TOKEN}"))
        await exchange(await concentrator.connect(VM), host)
        await host.close()
        for _, writer in flood:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def test_who_does_not_say_in_time_for_whom_it_speaks_is_cut_off() -> None:
    async with running(identify_s=0.1) as concentrator, asyncio.timeout(60):
        reader, writer = await asyncio.open_connection(*concentrator.address)
        await reader.read()  # what it is asked, and then the end
        writer.close()
        await writer.wait_closed()


async def test_who_has_said_for_whom_it_speaks_has_all_time(concentrator: Concentrator) -> None:
    known = await dialled(concentrator)
    inbound = port_of(concentrator)._inbound
    assert isinstance(inbound, HostConnection)
    assert inbound._patience.cancelled()
    await exchange(await concentrator.connect(VM), known)
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


async def test_what_a_vm_says_while_its_host_dials_is_dropped(concentrator: Concentrator) -> None:
    host = host_of(concentrator)
    connecting = asyncio.create_task(concentrator.connect(VM))
    await asyncio.sleep(0)
    host.conversation._telnet._output.insert(0, b"BIOS \xff\xff")  # before all else
    await host.dial()
    host.write(b"boot loader")
    host.send(do_proxy("C", f"vch://{TOKEN}"))
    await exchange(await connecting, host)
    await host.close()


async def test_who_says_much_and_not_for_whom_is_cut_off(concentrator: Concentrator) -> None:
    host = host_of(concentrator)
    await host.dial()
    host.write(bytes((1 << 20) + 1))
    assert await host.read() == b""
    await host.close()


async def test_hosts_that_dial_before_all_vms_are_admitted_wait() -> None:
    concentrator = Concentrator("127.0.0.1", 0)
    await concentrator.open()
    async with asyncio.timeout(60):
        host = host_of(concentrator)
        opening = asyncio.create_task(host.open())
        await until(lambda: host._writer)
        concentrator.admit(VM, TOKEN)
        concentrator.serve()
        await opening
        await exchange(await concentrator.connect(VM), host)
        await host.close()
        await concentrator.close()


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


async def test_who_speaks_no_tls_or_nothing_is_counted_and_cut_off(authority: trustme.CA) -> None:
    server, client = contexts(authority)
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


@pytest.mark.parametrize(
    "test",
    [
        test_who_speaks_no_tls_or_nothing_is_counted_and_cut_off,
    ],
)
def test_on_the_loop_of_the_port_layer(test: Callable[..., Coroutine[None, None, None]], authority: trustme.CA) -> None:
    on_uvloop(test, authority)
