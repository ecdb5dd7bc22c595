"""Containers that move into clones, and what is made for them, while answers get lost and callers give up."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from pyVmomi import vim
from vsphere_control import RECONFIGURATION
from vsphere_front import Forward, Front
from vsphere_http import CutError
from vsphere_plain import extra
from vsphere_site import Site, make_template, spec, writable
from vsphere_soap import Call, Reply
from vsphere_trouble import cut_after, fail_task_after, held, unavailable
from vsphere_waiting import PATIENCE_S, until

from portlayer.drivers import uninterrupted
from portlayer.drivers.base import PowerState
from portlayer.drivers.vsphere import extra_config, operations
from portlayer.drivers.vsphere.machine import first_uuid
from portlayer.errors import DriverError, NotFoundError

BROKEN = vim.fault.GenericVmConfigFault(msg="in vain")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """vSphere takes longer than anybody waits who has given up."""
    monkeypatch.setattr(uninterrupted, "_PATIENCE_S", 0.05)


def disk_is_there(site: Site, disk: str) -> bool:
    return any(path and disk.endswith(path) for path in site.files())


async def given_up(work: asyncio.Future[Any]) -> None:
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work


@pytest.mark.parametrize("how", ["cut", "fault"])
async def test_a_disk_that_was_lent_without_an_answer_moves_on(site: Site, short_dial: None, how: str) -> None:
    trouble = {"cut": cut_after(), "fault": fail_task_after(BROKEN)}[how]
    async with site.driver() as driver:
        template = await make_template(driver)
        machine = await driver.create(spec(), b"record")
        name = f"web-{machine.id[:12]}"
        vm, disk = site.vm(name), writable(site.vm(name))
        lending = site.front.inject("ReconfigVM_Task", trouble, when=lambda call: call.target == vm._moId)
        await machine.power_on(await template.clone())
        assert lending.hits == 1
        await until(lambda: site.has_moved(name))
        assert writable(site.vm(name)) == disk
        assert disk_is_there(site, disk)


async def test_a_disk_that_came_back_without_an_answer_is_back(site: Site, short_dial: None) -> None:
    async with site.driver() as driver:
        template = await make_template(driver)
        machine = await driver.create(spec(), b"record")
        vm = site.vm(f"web-{machine.id[:12]}")
        disk, clone = writable(vm), await template.clone()
        await clone.remove()  # type: ignore[attr-defined]
        with pytest.raises(NotFoundError):
            await machine.power_on(clone)
        assert extra(vm)[extra_config.LENT_DISK] == disk
        back = site.front.inject("ReconfigVM_Task", cut_after(), when=lambda call: call.target == vm._moId)
        await machine.power_on()
        assert back.hits == 1
        assert (writable(vm), vm.runtime.powerState) == (disk, "poweredOn")


async def test_a_clone_that_may_have_the_disk_is_asked_before_the_next_start(site: Site, short_dial: None) -> None:
    """The VM before must not get the disk back: the clone that has it runs."""
    async with site.driver() as driver:
        template = await make_template(driver)
        machine = await driver.create(spec(), b"record")
        name = f"web-{machine.id[:12]}"
        disk, clone = writable(site.vm(name)), await template.clone()
        site.front.inject("ReconfigVM_Task", fail_task_after(BROKEN), when=lambda call: call.target == clone.vm._moId)
        delays, driver.around.session.delays_s = driver.around.session.delays_s, ()
        away = site.front.inject("RetrievePropertiesEx", unavailable(), times=None, when=about(clone))
        for wanted in (clone, None):
            with pytest.raises(DriverError, match="503"):
                await machine.power_on(wanted)
        assert away.hits == 2
        site.front.clear()
        driver.around.session.delays_s = delays
        await machine.write_record(b"meanwhile")
        await machine.power_on()
        assert await machine.power_state() is PowerState.RUNNING
        await until(lambda: site.has_moved(name))
        assert (site.vm(name)._moId, writable(site.vm(name))) == (clone.vm._moId, disk)
        await machine.write_record(b"afterwards")
        assert extra_config.read_record(extra(site.vm(name))) == b"afterwards"


def about(clone: Any) -> Any:
    def is_about(call: Call) -> bool:
        return clone.vm._moId.encode() in call.body and b"recentTask" in call.body

    return is_about


async def test_a_start_that_is_given_up_does_not_cost_the_disk(
    site: Site, short_dial: None, impatient: None, gate: threading.Event
) -> None:
    async with site.driver() as driver:
        template = await make_template(driver)
        machine = await driver.create(spec(), b"record")
        name = f"web-{machine.id[:12]}"
        disk, clone = writable(site.vm(name)), await template.clone()
        moving = site.front.inject("ReconfigVM_Task", held(gate), when=lambda call: call.target == clone.vm._moId)
        starting = asyncio.ensure_future(machine.power_on(clone))
        await until(lambda: moving.hits)
        await given_up(starting)
        again = asyncio.ensure_future(machine.power_on())  # which waits for what is under way
        gate.set()
        await again
        await until(lambda: site.has_moved(name))
        assert (site.vm(name)._moId, writable(site.vm(name))) == (clone.vm._moId, disk)
        assert disk_is_there(site, disk)


async def test_a_move_that_goes_on_when_the_port_layer_is_killed_is_waited_for(
    site: Site, short_dial: None, impatient: None
) -> None:
    """vSphere makes the change while the next port layer comes up; until then the clone looks like nobody's."""
    begun: list[tuple[vim.Task, vim.vm.ConfigSpec]] = []
    looked = threading.Event()
    control = site.front.control

    async def begin(front: Front, call: Call, forward: Forward) -> Reply:
        task = await front.controlled(control.new_task, control.machine(call.target), RECONFIGURATION)
        begun.append((task, call.decoded("spec", vim.vm.ConfigSpec)))
        raise CutError

    async def look(front: Front, call: Call, forward: Forward) -> Reply:
        reply = await forward()
        looked.set()
        return reply

    async with site.driver() as driver:
        template = await make_template(driver)
        machine = await driver.create(spec(), b"record")
        disk, clone = writable(site.vm(f"web-{machine.id[:12]}")), await template.clone()
        site.front.inject("ReconfigVM_Task", begin, when=lambda call: call.target == clone.vm._moId)
        again = site.front.inject(
            "ReconfigVM_Task", unavailable(), times=None, when=lambda call: call.target == clone.vm._moId
        )
        driver.around.session.delays_s = (0.02, 60.0)
        starting = asyncio.ensure_future(machine.power_on(clone))
        await until(lambda: again.hits)  # after which it waits for a minute
        starting.cancel()
    site.front.clear()
    site.front.inject("RetrievePropertiesEx", look, times=None, when=lambda call: b"descriptionId" in call.body)

    async def go_on() -> None:
        await until(looked.is_set)
        [(task, change)] = begun
        vm = control.machine(clone.vm._moId)
        await asyncio.to_thread(control.outcome, vm.ReconfigVM_Task(change)._moId)
        await asyncio.to_thread(control.succeed, task, vm)

    going_on = asyncio.ensure_future(go_on())
    async with site.driver() as driver:
        await going_on
        [found] = await driver.list()
        assert await found.power_state() is PowerState.RUNNING
        name = f"web-{machine.id[:12]}"
        await until(lambda: site.has_moved(name))
        assert (site.vm(name)._moId, writable(site.vm(name))) == (clone.vm._moId, disk)
        assert disk_is_there(site, disk)


async def test_a_record_that_is_written_meanwhile_moves_too(
    site: Site, short_dial: None, gate: threading.Event
) -> None:
    async with site.driver() as driver:
        template = await make_template(driver)
        machine = await driver.create(spec(), b"record")
        clone = await template.clone()
        moving = site.front.inject("ReconfigVM_Task", held(gate), when=lambda call: call.target == clone.vm._moId)
        starting = asyncio.ensure_future(machine.power_on(clone))
        await until(lambda: moving.hits)
        writing = asyncio.ensure_future(machine.write_record(b"stopped meanwhile"))
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(starting, writing)
        name = f"web-{machine.id[:12]}"
        await until(lambda: site.has_moved(name))
        assert extra_config.read_record(extra(site.vm(name))) == b"stopped meanwhile"
        await machine.write_record(b"next")


async def test_a_vm_that_a_container_has_left_may_not_dial_in(site: Site, short_dial: None) -> None:
    async with site.driver() as driver:
        template = await make_template(driver)
        machine = await driver.create(spec(), b"record")
        await machine.power_on(await template.clone())
        with pytest.raises(DriverError, match="not admitted"):
            async with asyncio.timeout(PATIENCE_S):
                await driver.around.lines.connect(first_uuid(machine.id))


async def test_a_creation_that_is_given_up_leaves_nothing_however_long_it_takes(
    site: Site, impatient: None, gate: threading.Event
) -> None:
    async with site.driver() as driver:
        await driver.destroy(await driver.create(spec(), b"record"))
        making = site.front.inject("CreateVM_Task", held(gate))
        creation = asyncio.ensure_future(driver.create(spec(), b"record"))
        await until(lambda: making.hits)
        await given_up(creation)
        gate.set()
        await until(lambda: site.front.calls["Destroy_Task"] == 2)
        await until(lambda: (site.names(), site.files()) == ([], set()))
        async with asyncio.timeout(PATIENCE_S):
            while await driver.list():
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("patience_s", [0.05, 10.0])
async def test_a_clone_that_nobody_waits_for_any_more_goes(
    site: Site, short_dial: None, monkeypatch: pytest.MonkeyPatch, gate: threading.Event, patience_s: float
) -> None:
    monkeypatch.setattr(uninterrupted, "_PATIENCE_S", patience_s)
    async with site.driver() as driver:
        template = await make_template(driver)
        [name] = site.names()
        making = site.front.inject("InstantClone_Task", held(gate))
        cloning = asyncio.ensure_future(template.clone())
        await until(lambda: making.hits)
        if patience_s > 1:
            gate.set()
        await given_up(cloning)
        gate.set()
        await until(lambda: site.front.calls["Destroy_Task"] == 1)
        await until(lambda: site.names() == [name])


async def test_what_is_under_way_is_waited_for() -> None:
    """What a VM has is known when no task of vSphere's may change it any more."""
    waited: list[str] = []
    states = {"ended": "success", "failed": "error", "runs": "running", "queued": "queued", "vMotion": "running"}

    async def outcome(task: Any, what: str) -> None:
        waited.append(task)
        states[task] = "success"
        raise DriverError("somebody looked away")

    async def read(things: list[str], paths: list[str]) -> dict[str, dict[str, Any]]:
        if paths == ["recentTask"]:
            return {"vm": {"recentTask": list(states)}}
        kinds = {"vMotion": "VirtualMachine.migrate"}
        return {
            task: {"info.state": states[task], "info.descriptionId": kinds.get(task, "VirtualMachine.reconfigure")}
            for task in things
        }

    session: Any = SimpleNamespace(read=read, tasks=SimpleNamespace(outcome=outcome))
    await operations.settled(session, "vm", operations.RECONFIGURATION)
    assert waited == ["runs", "queued"]
