"""A real guest in the lab: boots from its CD, finds its disks by SCSI target, is reached through a concentrator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from lab_calls import qemus
from lab_dial import dial_as_esxi
from lab_disks import content_file
from lab_estate import Estate
from lab_esxi import Lab
from lab_guest import BOOT_SECONDS, GuestMachine, launch, make_files, outcome, run
from pyVmomi import vim
from vsphere_waiting import until

from portlayer.drivers.vsphere.serial.concentrator import Concentrator

pytestmark = pytest.mark.vm

LINES = 20000


@pytest.fixture
async def concentrator() -> AsyncIterator[Concentrator]:
    concentrator = Concentrator("127.0.0.1", 0)
    await concentrator.open()
    concentrator.serve()
    yield concentrator
    await concentrator.close()


@pytest.fixture
async def files(estate: Estate, tmp_path: Path) -> None:
    make_files(estate, tmp_path)


@pytest.fixture
async def lab(files: None, concentrator: Concentrator, estate: Estate) -> AsyncIterator[Lab]:
    async with Lab(estate.account, dial_as_esxi) as lab:
        yield lab
        estate.clear()


async def test_a_container_and_its_disk_through_two_lives(lab: Lab, estate: Estate, concentrator: Concentrator) -> None:
    one = GuestMachine(estate, concentrator, "one")
    one.give_disks()
    image = content_file(estate.directory / "vch/image.vmdk").read_bytes()
    for script, expected in (("echo kept > /file; hostname; exit 3", (3, "box\n")), ("cat /file", (0, "kept\n"))):
        one.power_on()
        async with one.agent() as agent:
            await agent.hello(timeout_s=BOOT_SECONDS)
            assert await run(agent, script) == expected
        await one.went_off()
    assert content_file(estate.directory / "vch/image.vmdk").read_bytes() == image
    assert b"kept" not in content_file(estate.directory / "vch/empty.vmdk").read_bytes()
    assert b"tether: listening" in (estate.directory / "one/console.log").read_bytes()


async def test_instant_clones_are_the_source_with_disks_of_their_own(
    lab: Lab, estate: Estate, concentrator: Concentrator
) -> None:
    parent = GuestMachine(estate, concentrator, "parent")
    parent.power_on()
    async with parent.agent() as agent:
        booted = (await agent.hello(timeout_s=BOOT_SECONDS)).boot_id
    clones = [
        GuestMachine(estate, concentrator, name, token=parent.token, **{"lab.forkedFrom": parent.machine._moId})
        for name in ("two", "three")
    ]
    for clone in clones:
        clone.power_on()
        async with clone.agent() as agent:
            assert (await agent.hello(timeout_s=BOOT_SECONDS)).boot_id == booted
            clone.give_disks()
            assert await run(agent, f"test ! -e /file && echo {clone.name} > /file && cat /file") == (
                0,
                f"{clone.name}\n",
            )
        await clone.went_off()
    assert estate.power_state(parent.machine) == "poweredOn"


async def test_a_stream_survives_vmotion(lab: Lab, estate: Estate, concentrator: Concentrator) -> None:
    one = GuestMachine(estate, concentrator, "one")
    one.give_disks()
    one.power_on()
    here = estate.values(one.machine)["runtime.host"]
    there = next(host for host in estate.hosts if host != here)
    async with one.agent() as agent:
        await agent.hello(timeout_s=BOOT_SECONDS)
        first = qemus("one")
        await launch(agent, f"i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); done; cat; exit 4")
        flowing = asyncio.Event()
        ending = asyncio.create_task(outcome(agent, flowing.set))
        await flowing.wait()
        for host in (there, here):
            await asyncio.to_thread(estate.wait, one.machine.RelocateVM_Task(vim.vm.RelocateSpec(host=host)))
            await until(lambda first=first: len(now := qemus("one")) == 1 and now != first)
            first = qemus("one")
        assert await ending == (4, "".join(f"line {number}\n" for number in range(LINES)))
    await one.went_off()
