"""A vMotion of a VM's port, step by step, as its hosts bring it about."""

from __future__ import annotations

from vsphere_dialling import VM, Streams, exchange
from vsphere_esxi_port import EsxiPort

from portlayer.drivers.vsphere.serial import Concentrator, migration
from portlayer.drivers.vsphere.serial.extension import Code, Message
from portlayer.drivers.vsphere.serial.port import Port


def port_of(concentrator: Concentrator) -> Port:
    """VM's."""
    return concentrator._admissions.port(VM)


async def begun(source: EsxiPort) -> bytes:
    """The cookie that the source is given for its destination."""
    answer = await source.begin(b"\xff\x00seq")
    assert answer.code is Code.VMOTION_GOAHEAD
    assert answer.body.startswith(b"\xff\x00seq")
    assert len(answer.body) == 5 + migration.SECRET_BYTES
    return answer.body


async def arrived(source: EsxiPort, cookie: bytes) -> EsxiPort:
    """The destination, which has been accepted."""
    destination = source.twin()
    await destination.open()
    await destination.present(cookie)
    return destination


async def completed(source: EsxiPort, destination: EsxiPort, streams: Streams) -> None:
    """The VM runs on at its destination, and is spoken with there."""
    destination.send(Message(Code.VMOTION_COMPLETE))
    await source.close()
    await exchange(streams, destination)
