"""The driver with all that it stands on, opened: what it finds out before it makes anything."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import pytest
from vsphere_front import Front
from vsphere_machines import WHO, guest_image, settings
from vsphere_simulator import HOST

from portlayer.drivers.vsphere import site_driver
from portlayer.drivers.vsphere.settings import SerialSettings
from portlayer.errors import DriverError, InvalidArgumentError, PortLayerError


async def makes_nothing(front: Front, directory: Path, serial: SerialSettings, error: type[PortLayerError]) -> str:
    """The message."""
    there = dataclasses.replace(settings(front), serial=serial)
    with pytest.raises(error) as caught:
        async with site_driver.opened(there, WHO, directory / "state", guest_image(directory / "guest")):
            pass
    assert front.calls["Login"], "it came as far as that"
    assert not front.calls.keys() & {"CreateFolder", "CreateResourcePool", "MakeDirectory"}
    return str(caught.value)


async def test_a_port_that_is_taken(front: Front, tmp_path: Path) -> None:
    """As by another VCH of this machine. A `vch down --force` would not know where to look for what was made."""
    with socket.create_server((HOST, 0)) as taken:
        serial = SerialSettings(HOST, taken.getsockname()[1], advertised_host=HOST)
        assert "--serial-listen of its own" in await makes_nothing(front, tmp_path, serial, DriverError)


async def test_a_certificate_of_no_use(front: Front, tmp_path: Path) -> None:
    (tmp_path / "none.pem").touch()
    serial = SerialSettings(HOST, 0, certificate=tmp_path / "none.pem", key=tmp_path / "none.pem")
    assert "--serial-tls-cert" in await makes_nothing(front, tmp_path, serial, InvalidArgumentError)
