"""How many calls to vSphere the driver makes for many VMs: a fixed number for each, and few for a look at all."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from vsphere_front import Front
from vsphere_machines import IMAGE, WHO, guest_image, settings
from vsphere_simulator import Simulator

from portlayer.drivers.base import MachineSpec, PowerState
from portlayer.drivers.vsphere import site_driver
from portlayer.drivers.vsphere.driver import VsphereDriver

_COUNT = 40
# What a session begins and ends with, and what comes once however many VMs there are.
_ONCE = 20


@asynccontextmanager
async def _port_layer(front: Front, root: Path) -> AsyncIterator[VsphereDriver]:
    """One life of a driver."""
    async with site_driver.opened(settings(front), WHO, root / "state", root / "guest") as (driver, datastore):
        (root / "disk").write_bytes(bytes(1 << 20))
        await datastore.put_image_disk(IMAGE, root / "disk")
        yield driver


def _spec(number: int) -> MachineSpec:
    return MachineSpec(f"{number:064x}"[::-1], f"web{number}", 64 << 20, 1, IMAGE, 16 << 20)


def _calls(front: Front) -> Counter[str]:
    """Since the last time, without long polls: those end when there is something to tell."""
    calls = Counter({method: count for method, count in front.calls.items() if method != "WaitForUpdatesEx"})
    front.calls.clear()
    return calls


async def test_calls_for_each_vm_are_few(fresh_simulator: Simulator, tmp_path: Path) -> None:
    guest_image(tmp_path / "guest")
    (tmp_path / "state").mkdir()
    with Front(fresh_simulator).open() as front:
        async with _port_layer(front, tmp_path) as driver:
            await driver.create(_spec(_COUNT), b"record")  # brings guest image and empty disk
            _calls(front)
            machines = await asyncio.gather(*(driver.create(_spec(number), b"record") for number in range(_COUNT)))
            made = _calls(front)
            await asyncio.gather(*(machine.power_on() for machine in machines))
            switched_on = _calls(front)
            await asyncio.gather(*(machine.write_record(b"another") for machine in machines))
            written = _calls(front)
        _calls(front)
        async with _port_layer(front, tmp_path) as driver:
            machines = await driver.list()
            assert {await machine.read_record() for machine in machines} == {b"another", b"record"}
            states = await asyncio.gather(*(machine.power_state() for machine in machines))
            found = _calls(front)
            await asyncio.gather(*(driver.destroy(machine) for machine in machines))
            removed = _calls(front)
    assert Counter(states) == {PowerState.RUNNING: _COUNT, PowerState.OFF: 1}
    assert made["CreateVM_Task"] == _COUNT
    assert made.total() <= 2 * _COUNT  # beginning the task, and having its end told
    assert switched_on.total() <= 2 * _COUNT
    assert written["ReconfigVM_Task"] == _COUNT
    assert written.total() <= 3 * _COUNT  # a look at what is there, too
    assert found["RetrievePropertiesEx"] <= _ONCE
    assert removed["Destroy_Task"] == _COUNT + 1
    assert removed["PowerOffVM_Task"] == _COUNT
    assert removed["DeleteVirtualDisk_Task"] == 2 * (_COUNT + 1)
    assert removed.total() <= 8 * _COUNT + _ONCE
