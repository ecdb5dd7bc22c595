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

from portlayer.drivers.vsphere import extra_config
from portlayer.drivers.vsphere.machine import VsphereMachine
from portlayer.errors import ConflictError, DriverError, ExhaustedError

# Calls of the following, beside what an operation asks for by itself.
_FOLLOWING = {"WaitForUpdatesEx", "DestroyPropertyCollector"}


@pytest.fixture
async def bench(front: Front, tmp_path: Path) -> AsyncIterator[Bench]:
    async with Bench.open(front, tmp_path) as bench:
        yield bench


@dataclass(frozen=True)
class Operation:
    """A step of a machine's life: what it is before, the step, and what has to be true after it."""

    prepare: Callable[[VsphereMachine], Awaitable[Any]]
    run: Callable[[VsphereMachine], Awaitable[Any]]
    done: Callable[[Any], bool]


async def _nothing(machine: VsphereMachine) -> None:
    """It is powered off and has its first record."""


def _record(vm: Any) -> bytes:
    return extra_config.read_record({option.key: option.value for option in vm.config.extraConfig})


OPERATIONS = {
    "power on": Operation(_nothing, lambda m: m.power_on(), lambda vm: vm.runtime.powerState == "poweredOn"),
    "power off": Operation(
        lambda m: m.power_on(), lambda m: m.power_off(), lambda vm: vm.runtime.powerState == "poweredOff"
    ),
    "pause": Operation(lambda m: m.power_on(), lambda m: m.pause(), lambda vm: vm.runtime.powerState == "suspended"),
    "write record": Operation(_nothing, lambda m: m.write_record(b"second"), lambda vm: _record(vm) == b"second"),
    "remove": Operation(lambda m: m.power_on(), lambda m: m.remove(), lambda vm: vm is None),
}
TROUBLE: dict[str, Callable[[], Action]] = {
    "session dropped": drop_session,
    "cut before": cut_before,
    "answer lost": cut_after,
    "unavailable": unavailable,
    "restarted before": lambda: restart(0.05, after=False),
    "restarted after": lambda: restart(0.05, after=True),
}


@pytest.mark.parametrize("trouble", TROUBLE)
@pytest.mark.parametrize("name", OPERATIONS)
async def test_trouble_at_every_call(bench: Bench, name: str, trouble: str) -> None:
    operation = OPERATIONS[name]
    undisturbed = bench.machine()
    await operation.prepare(undisturbed)
    bench.front.clear()
    await operation.run(undisturbed)
    calls = set(bench.front.calls) - _FOLLOWING
    assert any(call.endswith("_Task") for call in calls)
    for call in sorted(calls):
        machine = bench.machine()
        await operation.prepare(machine)
        bench.front.clear()
        injection = bench.front.inject(call, TROUBLE[trouble]())
        await operation.run(machine)
        assert injection.hits == 1, call
        assert operation.done(bench.truth(machine)), call
        bench.front.clear()
        await machine.remove()
        assert not [left for left in bench.files() if machine.id[:12] in left], call


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("power on", "PowerOnVM_Task"),
        ("power off", "PowerOffVM_Task"),
        ("pause", "SuspendVM_Task"),
        ("write record", "ReconfigVM_Task"),
        ("remove", "Destroy_Task"),
    ],
)
async def test_failed_task_is_a_clear_error_and_can_be_repeated(bench: Bench, name: str, method: str) -> None:
    operation = OPERATIONS[name]
    machine = bench.machine()
    await operation.prepare(machine)
    bench.front.inject(method, fail_task(vim.fault.NoDiskSpace(msg="LocalDS_0 is full", datastore="LocalDS_0")))
    with pytest.raises(ExhaustedError, match=f"web-{machine.id[:12]}: NoDiskSpace: LocalDS_0 is full"):
        await operation.run(machine)
    assert not operation.done(bench.truth(machine))
    await operation.run(machine)
    assert operation.done(bench.truth(machine))


@pytest.mark.parametrize("name", OPERATIONS)
async def test_task_that_failed_after_its_work_can_be_repeated(bench: Bench, name: str) -> None:
    operation = OPERATIONS[name]
    method = {"power on": "PowerOnVM_Task", "power off": "PowerOffVM_Task", "pause": "SuspendVM_Task"}.get(
        name, "Destroy_Task" if name == "remove" else "ReconfigVM_Task"
    )
    machine = bench.machine()
    await operation.prepare(machine)
    bench.front.inject(method, fail_task_after(vmodl.fault.SystemError(msg="lost the host", reason="")))
    with pytest.raises(DriverError, match="lost the host"):
        await operation.run(machine)
    assert operation.done(bench.truth(machine))
    if name == "pause":
        with pytest.raises(ConflictError, match="is paused, not running"):
            await operation.run(machine)
    else:
        await operation.run(machine)
    assert operation.done(bench.truth(machine))


async def test_vcenter_that_stays_away_is_said(bench: Bench) -> None:
    machine = bench.machine()
    bench.front.down()
    with pytest.raises(DriverError, match="Connection refused"):
        await machine.power_on()
    bench.front.up()
    await machine.power_on()
    assert bench.truth(machine).runtime.powerState == "poweredOn"
