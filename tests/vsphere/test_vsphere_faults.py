"""Trouble at every call that a machine's life takes: it comes to the same end, once, or to a clear error."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim, vmodl
from vsphere_front import Action, Front
from vsphere_machines import Bench
from vsphere_trouble import cut_after, cut_before, drop_session, fail_task, fail_task_after, restart, unavailable
from vsphere_waiting import settled

from portlayer.drivers.base import Machine, Shape
from portlayer.drivers.vsphere import cloning, extra_config
from portlayer.errors import ConflictError, DriverError, ExhaustedError

# Calls of the following, beside what an operation asks for by itself.
_FOLLOWING = {"WaitForUpdatesEx", "DestroyPropertyCollector"}


@pytest.fixture
async def bench(front: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    async with Bench.open(front, tmp_path, monkeypatch) as bench:
        yield bench


@dataclass(frozen=True)
class Operation:
    """A step of a machine's life; `method` is the task that does it, `done` says of the VM that it is as wanted."""

    method: str
    run: Callable[[Machine], Awaitable[Any]]
    done: Callable[[Any], bool]
    running: bool = True


def _record(vm: Any) -> bytes:
    return extra_config.read_record({option.key: option.value for option in vm.config.extraConfig})


def _power(state: str) -> Callable[[Any], bool]:
    return lambda vm: bool(vm.runtime.powerState == state)


OPERATIONS = {
    "power on": Operation("PowerOnMultiVM_Task", lambda m: m.power_on(), _power("poweredOn"), running=False),
    "power off": Operation("PowerOffVM_Task", lambda m: m.power_off(), _power("poweredOff")),
    "pause": Operation("SuspendVM_Task", lambda m: m.pause(), _power("suspended")),
    "write record": Operation(
        "ReconfigVM_Task", lambda m: m.write_record(b"second"), lambda vm: _record(vm) == b"second"
    ),
}
TROUBLE: dict[str, Callable[[], Action]] = {
    "session dropped": drop_session,
    "cut before": cut_before,
    "answer lost": cut_after,
    "unavailable": unavailable,
    "restarted before": lambda: restart(0.05, after=False),
    "restarted after": lambda: restart(0.05, after=True),
}
FULL = vim.fault.NoDiskSpace(msg="LocalDS_0 is full", datastore="LocalDS_0")


@pytest.mark.parametrize("trouble", TROUBLE)
@pytest.mark.parametrize("name", OPERATIONS)
async def test_trouble_at_every_call(bench: Bench, name: str, trouble: str) -> None:
    operation = OPERATIONS[name]
    undisturbed = await bench.machine(running=operation.running)
    await settled(bench.driver)
    bench.front.clear()
    await operation.run(undisturbed)
    calls = set(bench.front.calls) - _FOLLOWING
    assert operation.method in calls
    for call in sorted(calls):
        machine = await bench.machine(running=operation.running)
        bench.front.clear()
        injection = bench.front.inject(call, TROUBLE[trouble]())
        await operation.run(machine)
        assert injection.hits == 1, call
        assert operation.done(bench.truth(machine.id)), call
        await bench.driver.destroy(machine)


@pytest.mark.parametrize("trouble", TROUBLE)
async def test_trouble_at_every_call_of_a_creation_and_a_removal(bench: Bench, trouble: str) -> None:
    await bench.machine()  # what only the first of a VCH takes has been brought now
    before = bench.machines()
    await settled(bench.driver)
    bench.front.clear()
    undisturbed = await bench.machine(running=True)
    creation = set(bench.front.calls) - _FOLLOWING
    await settled(bench.driver)
    bench.front.clear()
    await bench.driver.destroy(undisturbed)
    removal = set(bench.front.calls) - _FOLLOWING
    assert "CreateVM_Task" in creation
    assert "Destroy_Task" in removal
    await bench.leaves_nothing_of(undisturbed.id)
    for call in sorted(creation):
        bench.front.clear()
        injection = bench.front.inject(call, TROUBLE[trouble]())
        machine = await bench.machine(running=True)
        assert injection.hits == 1, call
        assert bench.machines() == sorted([*before, f"web-{machine.id[:12]}"]), call
        assert bench.truth(machine.id).runtime.powerState == "poweredOn"
        await bench.driver.destroy(machine)
        await bench.leaves_nothing_of(machine.id, call)
    for call in sorted(removal):
        machine = await bench.machine(running=True)
        bench.front.clear()
        injection = bench.front.inject(call, TROUBLE[trouble]())
        await bench.driver.destroy(machine)
        assert injection.hits == 1, call
        await bench.leaves_nothing_of(machine.id, call)
    assert bench.machines() == before


@pytest.mark.parametrize("name", OPERATIONS)
async def test_failed_task_is_a_clear_error_and_can_be_repeated(bench: Bench, name: str) -> None:
    operation = OPERATIONS[name]
    machine = await bench.machine(running=operation.running)
    bench.front.inject(operation.method, fail_task(FULL))
    with pytest.raises(ExhaustedError, match=f"web-{machine.id[:12]}: NoDiskSpace: LocalDS_0 is full"):
        await operation.run(machine)
    assert not operation.done(bench.truth(machine.id))
    await operation.run(machine)
    assert operation.done(bench.truth(machine.id))


@pytest.mark.parametrize("name", OPERATIONS)
async def test_task_that_failed_after_its_work_can_be_repeated(bench: Bench, name: str) -> None:
    operation = OPERATIONS[name]
    machine = await bench.machine(running=operation.running)
    bench.front.inject(operation.method, fail_task_after(vmodl.fault.SystemError(msg="lost the host", reason="")))
    with pytest.raises(DriverError, match="lost the host"):
        await operation.run(machine)
    assert operation.done(bench.truth(machine.id))
    if name == "pause":
        with pytest.raises(ConflictError, match="is paused, not running"):
            await operation.run(machine)
    else:
        await operation.run(machine)
    assert operation.done(bench.truth(machine.id))


async def test_failed_creation_leaves_nothing(bench: Bench) -> None:
    spec = bench.spec()
    bench.front.inject("CreateVM_Task", fail_task(FULL))
    with pytest.raises(ExhaustedError, match=f"creating the VM web-{spec.id[:12]}: NoDiskSpace: LocalDS_0 is full"):
        await bench.driver.create(spec, b"first")
    await bench.leaves_nothing_of(spec.id)
    assert await bench.driver.list() == []
    await bench.driver.create(spec, b"first")


async def test_creation_that_failed_after_its_work_leaves_nothing(bench: Bench) -> None:
    spec = bench.spec()
    bench.front.inject("CreateVM_Task", fail_task_after(vmodl.fault.SystemError(msg="lost the host", reason="")))
    with pytest.raises(DriverError, match="lost the host"):
        await bench.driver.create(spec, b"first")
    await bench.leaves_nothing_of(spec.id)


async def test_failed_removal_is_said_and_can_be_repeated(bench: Bench) -> None:
    machine = await bench.machine(running=True)
    bench.front.inject("Destroy_Task", fail_task(vim.fault.FileLocked(msg="the disk is locked", file="")))
    with pytest.raises(ConflictError, match=r"removing the VM web-.*the disk is locked"):
        await bench.driver.destroy(machine)
    assert await bench.driver.list() == [machine]
    await bench.driver.destroy(machine)
    await bench.leaves_nothing_of(machine.id)


async def test_missing_privilege_is_named(bench: Bench) -> None:
    spec = bench.spec()
    bench.front.denied.add("VirtualMachine.Inventory.Create")
    where = r"faults-0123456789ab \(group-v?\d+\)"  # by the name that people see
    with pytest.raises(DriverError, match=rf"lacks the privilege VirtualMachine\.Inventory\.Create on {where}"):
        await bench.driver.create(spec, b"first")
    await bench.leaves_nothing_of(spec.id)


async def test_vcenter_that_stays_away_is_said(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="portlayer.drivers.vsphere.session")
    machine = await bench.machine()
    bench.front.down()
    bench.driver.around.session._stub.DropConnections()  # as the long polls that break do, sooner or later
    with pytest.raises(DriverError, match=r"vSphere does not answer \(.*Connection refused"):
        await machine.power_on()
    told = [record.getMessage() for record in caplog.records if "trying again in" in record.getMessage()]
    assert len(told) == 1, "not at each attempt, of which there are some in every second"
    bench.front.up()
    await machine.power_on()
    assert bench.truth(machine.id).runtime.powerState == "poweredOn"


@pytest.mark.parametrize("trouble", TROUBLE)
async def test_trouble_at_the_making_of_a_clone(bench: Bench, trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloning, "_DIAL_S", 0.01)  # no guest is there to dial in
    assert bench.driver.cloning is not None
    parent = await bench.driver.cloning.boot_parent(Shape(64 << 20, 1))
    template = await parent.freeze(1)
    with_template = bench.machines()
    injection = bench.front.inject("InstantClone_Task", TROUBLE[trouble]())
    clone = await template.clone()
    assert injection.hits == 1
    assert len(bench.machines()) == len(with_template) + 1, "one clone, however often it was asked for"
    await clone.discard()
    assert bench.machines() == with_template
    await template.remove()
    assert not bench.machines()


async def test_failed_clone_leaves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloning, "_DIAL_S", 0.01)
    assert bench.driver.cloning is not None
    parent = await bench.driver.cloning.boot_parent(Shape(64 << 20, 1))
    template = await parent.freeze(1)
    with_template = bench.machines()
    for method in ("InstantClone_Task", "ReconfigVM_Task"):
        bench.front.inject(method, fail_task(FULL))
        with pytest.raises(ExhaustedError, match="NoDiskSpace: LocalDS_0 is full"):
            await template.clone()
        assert bench.machines() == with_template, method
    await template.remove()


async def test_failed_template_leaves_nothing(bench: Bench) -> None:
    assert bench.driver.cloning is not None
    for method in ("CreateVM_Task", "PowerOnMultiVM_Task"):
        bench.front.inject(method, fail_task(FULL))
        with pytest.raises(ExhaustedError, match="NoDiskSpace: LocalDS_0 is full"):
            await bench.driver.cloning.boot_parent(Shape(64 << 20, 1))
        assert not bench.machines(), method
