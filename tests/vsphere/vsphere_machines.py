"""The driver before the simulator, through a front: with no guests, so nothing ever dials in."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import shutil
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from vsphere_front import Front
from vsphere_plain import Plain
from vsphere_simulator import HOST
from vsphere_waiting import PATIENCE_S, everything_below

from portlayer.drivers.base import Machine, MachineSpec
from portlayer.drivers.vsphere import site_driver
from portlayer.drivers.vsphere.driver import VsphereDriver
from portlayer.drivers.vsphere.endpoint import Credentials, Endpoint
from portlayer.drivers.vsphere.machine import first_uuid
from portlayer.drivers.vsphere.placement import own_name
from portlayer.drivers.vsphere.session import Session
from portlayer.drivers.vsphere.settings import SerialSettings, VsphereSettings
from portlayer.identity import Identity

IMAGE = "image.squashfs"
WHO = Identity("0123456789abcdef0123456789abcdef", "faults", 1)
# Short: nothing is to be gained by waiting for a simulator.
DELAYS_S = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)


def settings(front: Front) -> VsphereSettings:
    simulator = front.simulator
    return VsphereSettings(
        Endpoint(HOST, front.port, thumbprint=simulator.thumbprint),
        Credentials(simulator.user, simulator.password),
        datastore="LocalDS_0",
        serial=SerialSettings(HOST, 0, advertised_host=HOST),
    )


def guest_image(directory: Path) -> Path:
    """Files of the names that a guest image has. Nothing boots them."""
    directory.mkdir()
    files = {name: name.encode() for name in ("vmlinuz", "initramfs", "guest.iso")}
    for name, content in files.items():
        (directory / name).write_bytes(content)
    iso = {"file": "guest.iso", "sha256": hashlib.sha256(files["guest.iso"]).hexdigest()}
    sizes = {name: len(content) for name, content in files.items()}
    manifest = {"digest": "0" * 64, "kernel_version": "none", "sizes": sizes, "iso": iso}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


class Bench:
    """The driver, and, past the front, all that a test wants to see of the truth."""

    def __init__(self, front: Front, plain: Plain, driver: VsphereDriver, state_dir: Path) -> None:
        self.front = front
        self.driver = driver
        self.plain = plain
        self._state_dir = state_dir

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, front: Front, directory: Path, patch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
        patch.setattr(site_driver, "Session", functools.partial(Session, delays_s=DELAYS_S))
        state_dir = directory / "state"
        state_dir.mkdir()
        image = guest_image(directory / "guest")
        with front.simulator.connected() as instance:
            plain = Plain(instance)
            try:
                async with site_driver.opened(settings(front), WHO, state_dir, image) as (driver, datastore):
                    source = directory / "image"
                    source.write_bytes(bytes(1 << 20))
                    await datastore.put_image_disk(IMAGE, source)
                    yield cls(front, plain, driver, state_dir)
                    front.clear()
            finally:
                front.settle()
                plain.clear()
                shutil.rmtree(front.simulator.datastore_dir() / own_name(WHO.name, WHO.id), ignore_errors=True)

    def spec(self) -> MachineSpec:
        return MachineSpec((uuid.uuid4().hex * 2)[:64], "web", 64 << 20, 1, IMAGE, 16 << 20)

    async def machine(self, *, running: bool = False) -> Machine:
        """One with the record b"first"."""
        machine = await self.driver.create(self.spec(), b"first")
        if running:
            await machine.power_on()
        return machine

    def truth(self, machine_id: str) -> Any:
        """The VM, past the front; None when there is none of that id."""
        return self.plain.content.searchIndex.FindByUuid(None, first_uuid(machine_id), True, True)

    def machines(self) -> list[str]:
        """The names of all VMs, past the front."""
        return self.plain.machines()

    async def leaves_nothing_of(self, machine_id: str, after: str = "") -> None:
        """Waits, since the simulator deletes a VM's files by a task that Destroy_Task does not wait for."""
        deadline = time.monotonic() + PATIENCE_S
        while found := self.traces(machine_id):
            assert time.monotonic() < deadline, (after, found)
            await asyncio.sleep(0.01)

    def traces(self, machine_id: str) -> list[str]:
        """What there is of a container: VMs, files on the datastore, files of the port layer."""
        short = machine_id[:12]
        root = self.front.simulator.datastore_dir()
        files = [str(path.relative_to(root)) for path in everything_below(root) if short in path.name]
        own = [path.name for path in (self._state_dir / "machines").iterdir() if short in path.name]
        return [name for name in self.machines() if short in name] + files + own
