"""The lab follows the inventory, and the inventory the lab. The guests have nothing to boot: firmware is enough."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from lab_calls import Caller, qemus
from lab_estate import DATASTORE, EMPTY, Estate, add, agent_port, console, delta_disk, disk, nic, remove
from lab_esxi import Lab
from pyVmomi import vim
from vsphere_waiting import PATIENCE_S, until

pytestmark = pytest.mark.vm

LAB = Path(__file__).parent
OFF, ON = "poweredOff", "poweredOn"
BLOCK = b"delta" + bytes((1 << 20) - 5)


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    caller = Caller()
    await caller.open()
    yield caller
    await caller.close()


@pytest.fixture
async def lab(estate: Estate, caller: Caller) -> AsyncIterator[Lab]:
    async with Lab(estate.account, caller.dial_as) as lab:
        yield lab
    assert not [pid for name in ("one", "two") for pid in qemus(name)]


async def power_on(estate: Estate, machine: vim.VirtualMachine) -> int:
    estate.wait(machine.PowerOnVM_Task())
    name = estate.values(machine)["name"]
    await until(lambda: qemus(name))
    (pid,) = qemus(name)
    return pid


async def test_on_and_off(lab: Lab, estate: Estate) -> None:
    machine = estate.create("one", console("one"))
    await power_on(estate, machine)
    estate.wait(machine.PowerOffVM_Task())
    await until(lambda: not qemus("one"))
    assert (estate.directory / "one/console.log").exists()


async def test_a_machine_that_goes_away_is_off_in_the_inventory(lab: Lab, estate: Estate) -> None:
    machine = estate.create("one")
    os.kill(await power_on(estate, machine), signal.SIGKILL)
    await until(lambda: estate.power_state(machine) == OFF)


async def test_a_reset_is_a_new_life(lab: Lab, estate: Estate) -> None:
    machine = estate.create("one")
    first = await power_on(estate, machine)
    estate.wait(machine.ResetVM_Task())
    await until(lambda: qemus("one") and first not in qemus("one"))
    assert estate.power_state(machine) == ON


async def test_suspended_and_resumed_it_is_the_same_life(lab: Lab, estate: Estate, caller: Caller) -> None:
    machine = estate.create("one", agent_port("vch://one", "telnet://127.0.0.1:1"))
    pid = await power_on(estate, machine)
    name, reader, _ = await caller.next()
    assert name == "one vch://one"
    estate.wait(machine.SuspendVM_Task())
    assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b"", "a suspended VM holds no connection"
    estate.wait(machine.PowerOnVM_Task())
    name, *_ = await caller.next()
    assert name == "one vch://one"
    assert qemus("one") == [pid]


async def test_a_broken_connection_is_dialled_again(lab: Lab, estate: Estate, caller: Caller) -> None:
    machine = estate.create("one", agent_port("vch://first", "telnet://127.0.0.1:1"))
    await power_on(estate, machine)
    _, _, writer = await caller.next()
    writer.close()
    name, *_ = await caller.next()
    assert name == "one vch://first"

    port = estate.device(machine, vim.vm.device.VirtualSerialPort)
    port.backing.serviceURI = "vch://second"
    estate.reconfigure(machine, vim.vm.device.VirtualDeviceSpec(operation="edit", device=port))
    name, *_ = await caller.next()
    assert name == "one vch://second"


async def test_disks_and_nics_come_and_go(lab: Lab, estate: Estate) -> None:
    estate.make_disk(EMPTY, BLOCK)
    machine = estate.create("one", delta_disk("one", unit=0))
    pid = await power_on(estate, machine)
    content = estate.directory / "one/writable-flat.vmdk"
    assert content.read_bytes() == BLOCK

    def opened() -> set[str]:
        names = set()
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it closes files meanwhile
                names.add(file.readlink().name)
        return names

    adapter = estate.device(machine, vim.vm.device.ParaVirtualSCSIController)
    more = disk(3, f"[{DATASTORE}] one/more.vmdk", parent=EMPTY, key=adapter.key)
    estate.reconfigure(machine, add(more, new_file=True), nic())
    await until(lambda: "more-flat.vmdk" in opened())

    estate.reconfigure(machine, remove(estate.device(machine, vim.vm.device.VirtualDisk, 1)))
    await until(lambda: "more-flat.vmdk" not in opened())
    assert qemus("one") == [pid]
    assert "writable-flat.vmdk" in opened()


async def test_what_cannot_be_built_does_not_stay_on(
    lab: Lab, estate: Estate, caplog: pytest.LogCaptureFixture
) -> None:
    estate.make_disk(EMPTY, BLOCK)
    machine = estate.create("one", add(disk(0, EMPTY)))
    (estate.directory / "vch/empty.vmdk").write_text("scribble")
    estate.wait(machine.PowerOnVM_Task())
    await until(lambda: estate.power_state(machine) == OFF)
    assert "is no descriptor" in caplog.text


async def test_a_fork_takes_its_sources_state_and_its_own_calls(lab: Lab, estate: Estate, caller: Caller) -> None:
    parent = estate.create("one", console("one"), agent_port("vch://parent", "telnet://127.0.0.1:1"), nic())
    await power_on(estate, parent)
    await caller.next()
    clone = estate.create(
        "two",
        console("two"),
        agent_port("vch://parent", "telnet://127.0.0.1:1"),
        nic(),
        **{"lab.forkedFrom": parent._moId},
    )
    await power_on(estate, clone)
    name, *_ = await caller.next()
    assert name == "two vch://parent"
    assert estate.power_state(parent) == estate.power_state(clone) == ON
    assert qemus("one"), "the source stays, frozen"


async def test_machines_die_with_the_lab(estate: Estate, tmp_path: Path) -> None:
    machine = estate.create("one")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(LAB), "--host", estate.account.host, "--port", str(estate.account.port)),
        *("--user", estate.account.user),
        env=os.environ | {"LAB_PASSWORD": estate.account.password, "TMPDIR": str(tmp_path)},
    )
    try:
        await power_on(estate, machine)
    finally:
        process.kill()
        await process.wait()
    await until(lambda: not qemus("one"))
    assert estate.power_state(machine) == ON, "nobody was left to say so"

    async with Lab(estate.account, Caller().dial_as):  # the next lab is as the HA restart of a host
        await until(lambda: qemus("one"))
    assert not qemus("one")


async def test_a_machine_moves_to_another_host(lab: Lab, estate: Estate, caller: Caller) -> None:
    machine = estate.create("one", console("one"), agent_port("vch://one", "telnet://127.0.0.1:1"), nic())
    first = await power_on(estate, machine)
    await caller.next()
    host = next(one for one in estate.hosts if one != estate.values(machine)["runtime.host"])
    estate.wait(machine.RelocateVM_Task(vim.vm.RelocateSpec(host=host)))
    await until(lambda: qemus("one") and first not in qemus("one"))
    assert estate.power_state(machine) == ON
    await caller.next()  # plain TCP cannot move: the port dials anew
