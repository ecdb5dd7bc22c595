"""Who is taken for the destination of a vMotion, and who is not."""

from __future__ import annotations

import secrets

import pytest
from vsphere_dialling import OTHER, TOKEN, VM, dialled, exchange, host_of
from vsphere_esxi_port import Refused
from vsphere_vmotion import arrived, begun, completed

from portlayer.drivers.vsphere.serial import Concentrator
from portlayer.drivers.vsphere.serial.extension import Code, Message, do_proxy


async def test_a_destination_may_come_without_asking_to_be_carried(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    streams = await concentrator.connect(VM)
    cookie = await begun(source)
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
    cookie = await begun(source)
    stranger = await dialled(concentrator, vc_uuid=uuid)
    with pytest.raises(Refused, match="UNKNOWN_SUBOPTION_RCVD_2"):
        await stranger.present(cookie if uuid == OTHER else cookie[:-1] + bytes([cookie[-1] ^ 1]))
    assert await stranger.read() == b""
    destination = await arrived(source, cookie)
    await completed(source, destination, streams)
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
    cookie = await begun(source)
    for _ in range(1000):
        assert concentrator._admissions.migrations.find(cookie[:-8] + secrets.token_bytes(8)) is None
    destination = await arrived(source, cookie)
    await completed(source, destination, streams)
    await destination.close()


async def test_a_second_begin_voids_the_first_until_a_destination_is_there(concentrator: Concentrator) -> None:
    source = await dialled(concentrator)
    streams = await concentrator.connect(VM)
    first = await begun(source)
    second = await begun(source)
    assert first != second
    late = source.twin()
    await late.open()
    with pytest.raises(Refused):
        await late.present(first)
    destination = await arrived(source, second)
    assert (await source.begin()).code is Code.VMOTION_NOTNOW
    await completed(source, destination, streams)
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
