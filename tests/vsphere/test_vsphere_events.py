"""vSphere's event log as changes of machines: what others did, once, in names; what the VCH did itself is left out."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim, vmodl
from pyVmomi.VmomiSupport import CreateArrayType
from vsphere_front import Front
from vsphere_machines import Bench, settings
from vsphere_plain import Plain, outcome
from vsphere_simulator import Simulator
from vsphere_trouble import raise_fault
from vsphere_waiting import until

from portlayer.drivers.base import Change, MachineChange
from portlayer.drivers.vsphere import event_source
from portlayer.drivers.vsphere.event_source import MAX_MESSAGE, MAX_NAME, PAGE, EventLog
from portlayer.drivers.vsphere.session import Session


@pytest.fixture
async def bench(front: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    async with Bench.open(front, tmp_path, monkeypatch) as bench:
        yield bench


@pytest.fixture
def told(bench: Bench) -> list[MachineChange]:
    changes: list[MachineChange] = []
    bench.driver.on_change(changes.append)
    return changes


class Administrator:
    """Somebody else, with a session of his own."""

    def __init__(self, plain: Plain) -> None:
        self.content = plain.content

    def vm(self, truth: Any) -> Any:
        """The VM in his session."""
        return vim.VirtualMachine(truth._moId, self.content.eventManager._stub)

    def post(self, event: Any, truth: Any, **values: Any) -> None:
        """For what the simulator does not bring about."""
        self.content.eventManager.PostEvent(posted(event, truth, **values))


@pytest.fixture
def administrator(front: Front) -> Iterator[Administrator]:
    with front.simulator.connected(front.simulator.administrator) as instance:
        yield Administrator(Plain(instance))


def posted(event: Any, truth: Any, **values: Any) -> Any:
    event.vm = vim.event.VmEventArgument(name=truth.name, vm=vim.VirtualMachine(truth._moId))
    now = datetime.datetime.now(datetime.UTC)
    for name, value in {"key": 0, "chainId": 0, "createdTime": now, "userName": "", **values}.items():
        setattr(event, name, value)
    if isinstance(event, vim.event.EventEx):  # without, the simulator is stuck
        event.objectType, event.objectId = vim.VirtualMachine, truth._moId
    return event


def of(told: list[MachineChange], kind: Change) -> list[dict[str, str]]:
    return [dict(change.attributes) for change in told if change.kind is kind]


def host(name: str) -> Any:
    return vim.event.HostEventArgument(name=name, host=vim.HostSystem(f"host-of-{name}"))


async def test_who_switched_a_vm(bench: Bench, told: list[MachineChange], administrator: Administrator) -> None:
    machine = await bench.machine(running=True)
    vm = administrator.vm(bench.truth(machine.id))
    outcome(vm.SuspendVM_Task())
    outcome(vm.PowerOnVM_Task())
    outcome(vm.PowerOffVM_Task())
    await until(lambda: len(of(told, Change.SWITCHED)) == 3)
    words = of(told, Change.SWITCHED)
    assert [one["operation"] for one in words] == ["suspend", "power on", "power off"]
    assert {one["user"] for one in words} == {"administrator@vsphere.local"}
    assert all(one["host"].startswith("DC0_C0_H") and one["datacenter"] == "DC0" for one in words)
    assert {change.machine_id for change in told} == {machine.id}
    # What it is comes from its properties, once.
    await until(lambda: Change.POWERED_OFF in [change.kind for change in told])
    assert [change.kind for change in told].count(Change.POWERED_OFF) == 1


async def test_what_the_vch_does_is_not_told(
    bench: Bench, told: list[MachineChange], administrator: Administrator
) -> None:
    machine = await bench.machine(running=True)
    await machine.pause()
    await machine.resume()
    await machine.write_record(b"second")
    await machine.power_off()
    vm = administrator.vm(bench.truth(machine.id))
    # After which all before it is known.
    administrator.post(vim.event.VmRenamedEvent(oldName="web", newName="renamed"), vm)
    await until(lambda: of(told, Change.RENAMED))
    assert of(told, Change.SWITCHED) == []
    assert (of(told, Change.RENAMED)[0]["oldName"], of(told, Change.RENAMED)[0]["newName"]) == ("web", "renamed")


async def test_a_migration_is_told_with_the_names_of_hosts(
    fresh_simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own simulator: hosts there list a VM that has left them for ever."""
    with (
        Front(fresh_simulator).open() as front,
        fresh_simulator.connected(fresh_simulator.administrator) as instance,
    ):
        async with Bench.open(front, tmp_path, monkeypatch) as bench:
            told: list[MachineChange] = []
            bench.driver.on_change(told.append)
            machine = await bench.machine(running=True)
            vm = Administrator(Plain(instance)).vm(bench.truth(machine.id))
            before = vm.runtime.host
            other = next(one for one in before.parent.host if one != before)
            outcome(vm.RelocateVM_Task(vim.vm.RelocateSpec(host=other)))
            await until(lambda: of(told, Change.MIGRATED))
            (words,) = of(told, Change.MIGRATED)
            assert (words["sourceHost"], words["user"]) == (before.name, "administrator@vsphere.local")
            assert words["event"] == "VmMigratedEvent"
            assert words["message"].startswith("Migration of virtual machine web-")


ALARM = vim.event.AlarmStatusChangedEvent(
    alarm=vim.event.AlarmEventArgument(name="Virtual machine memory usage", alarm=vim.alarm.Alarm("alarm-7")),
    source=vim.event.ManagedEntityEventArgument(name="Datacenters", entity=vim.Folder("group-d1")),
    entity=vim.event.ManagedEntityEventArgument(name="web", entity=vim.VirtualMachine("vm-0")),
    to="red",
)
setattr(ALARM, "from", "green")
HAPPENINGS = {
    "alarm": (ALARM, Change.ALARM, {"alarm": "Virtual machine memory usage", "from": "green", "to": "red"}),
    "drs": (
        vim.event.DrsVmMigratedEvent(
            template=False,
            sourceHost=host("esx-1"),
            sourceDatacenter=vim.event.DatacenterEventArgument(name="DC0", datacenter=vim.Datacenter("datacenter-2")),
            sourceDatastore=vim.event.DatastoreEventArgument(name="ds", datastore=vim.Datastore("datastore-1")),
        ),
        Change.MIGRATED,
        {"sourceHost": "esx-1", "event": "DrsVmMigratedEvent"},
    ),
    "ha": (
        vim.event.VmRestartedOnAlternateHostEvent(template=False, sourceHost=host("esx-1")),
        Change.FAILED_OVER,
        {"sourceHost": "esx-1"},
    ),
    "ha since 5.0": (
        vim.event.EventEx(eventTypeId="com.vmware.vc.ha.VmRestartedByHAEvent", message="restarted by HA"),
        Change.FAILED_OVER,
        {"event": "com.vmware.vc.ha.VmRestartedByHAEvent", "message": "restarted by HA"},
    ),
    "ha in vain": (vim.event.VmFailoverFailed(template=False), Change.FAILED_OVER, {"event": "VmFailoverFailed"}),
    "guest hung": (vim.event.VmDasBeingResetEvent(template=False), Change.FAILED_OVER, {}),
    "reset": (vim.event.VmResettingEvent(template=False), Change.SWITCHED, {"operation": "reset"}),
    "question": (
        vim.event.VmMessageEvent(template=False, message="msg.disk.full: the disk is full"),
        Change.QUESTION,
        {"event": "VmMessageEvent"},
    ),
}


@pytest.mark.parametrize("name", HAPPENINGS)
async def test_what_vsphere_does_by_itself_is_told(
    bench: Bench, told: list[MachineChange], administrator: Administrator, name: str
) -> None:
    machine = await bench.machine(running=True)
    event, kind, expected = HAPPENINGS[name]
    administrator.post(event, bench.truth(machine.id), host=host("esx-2"))
    await until(lambda: of(told, kind))
    (words,) = of(told, kind)
    assert words.items() >= {**expected, "host": "esx-2"}.items()


async def test_vms_that_are_no_containers_are_not_told_of(
    bench: Bench, told: list[MachineChange], administrator: Administrator
) -> None:
    machine = await bench.machine()
    bench.plain.folder = bench.truth(machine.id).parent
    stranger = administrator.vm(outcome(bench.plain.create("stranger")))
    outcome(stranger.PowerOnVM_Task())
    administrator.post(vim.event.VmResettingEvent(template=False), bench.truth(machine.id))
    await until(lambda: of(told, Change.SWITCHED))
    assert {change.machine_id for change in told} == {machine.id}
    assert len(of(told, Change.SWITCHED)) == 1


async def test_nothing_is_told_twice_or_lost_when_the_session_breaks(
    bench: Bench, told: list[MachineChange], administrator: Administrator
) -> None:
    machine = await bench.machine(running=True)
    truth = bench.truth(machine.id)
    administrator.post(vim.event.VmResettingEvent(template=False), truth)
    await until(lambda: of(told, Change.SWITCHED))
    for round_ in range(2, 4):
        bench.front.drop_sessions()
        administrator.post(vim.event.VmResettingEvent(template=False), truth)
        await machine.read_record()  # which logs in again
        await until(lambda: len(of(told, Change.SWITCHED)) >= round_)  # noqa: B023
    administrator.post(vim.event.VmMessageEvent(template=False, message="?"), truth)
    await until(lambda: of(told, Change.QUESTION))
    assert len(of(told, Change.SWITCHED)) == 3


async def test_what_was_before_this_port_layer_is_not_told(
    front: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, administrator: Administrator
) -> None:
    async with Bench.open(front, tmp_path, monkeypatch) as bench:
        machine = await bench.machine()
        truth = bench.truth(machine.id)
        administrator.post(vim.event.VmResettingEvent(template=False), truth)
        told: list[Any] = []
        log = EventLog(truth.parent, lambda vm, change, words: told.append((vm, change)))
        async with again(bench, front) as session:
            await session.updates.add(log)
            administrator.post(vim.event.VmMessageEvent(template=False, message="?"), truth)
            await until(lambda: told)
        assert told == [(truth, Change.QUESTION)]


@contextlib.asynccontextmanager
async def again(bench: Bench, front: Front) -> AsyncIterator[Any]:
    """Another port layer's session."""
    chosen = settings(front)
    session = Session(chosen.endpoint, chosen.credentials)
    await session.open()
    try:
        yield session
    finally:
        await session.close()


@pytest.mark.parametrize(
    "denied",
    [
        vim.fault.NoPermission(privilegeId="System.View", object=vim.Folder("group-v1")),
        vmodl.fault.InvalidArgument(invalidProperty="filter.entity"),
    ],
    ids=["NoPermission", "InvalidArgument"],
)
async def test_without_the_right_to_see_events_the_rest_goes_on(
    denied: vmodl.MethodFault,
    front: Front,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    front.inject("CreateCollectorForEvents", raise_fault(denied), times=100)
    async with Bench.open(front, tmp_path, monkeypatch) as bench:
        told: list[MachineChange] = []
        bench.driver.on_change(told.append)
        machine = await bench.machine(running=True)
        outcome(bench.truth(machine.id).PowerOffVM_Task())
        await until(lambda: Change.POWERED_OFF in [change.kind for change in told])
    assert "events of vSphere are not told" in caplog.text


async def test_collectors_do_not_outlive_the_driver(
    front: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Bench.open(front, tmp_path, monkeypatch):
        made = front.calls["CreateCollectorForEvents"]
        front.clear()
    assert front.calls["DestroyCollector"] == made == 2


# --- the page by itself


def log_of(told: list[tuple[Change, dict[str, str]]]) -> EventLog:
    log = EventLog(vim.Folder("group-v1"), lambda vm, change, words: told.append((change, dict(words))))
    log._own_user = "VSPHERE.LOCAL\\vch"
    return log


def show(log: EventLog, events: Any, name: str = "latestPage") -> None:
    """As vCenter tells it: the page whole, or what is new of it by its key."""
    collector = event_source._Collector
    value = CreateArrayType(vim.event.Event)(events) if isinstance(events, list) else events
    change = collector.Change(name=name, op="assign", val=value)
    log.apply(collector.ObjectUpdate(kind="modify", obj=vim.Folder("page"), changeSet=[change]))
    log.complete()


def an_event(kind: Any, key: int, user: str = "", **values: Any) -> Any:
    moment = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(seconds=key)
    event = kind(key=key, chainId=key, createdTime=moment, userName=user, **values)
    event.vm = vim.event.VmEventArgument(name="web", vm=vim.VirtualMachine("vm-1"))
    return event


def test_a_page_in_any_order_is_told_in_the_order_of_time() -> None:
    told: list[tuple[Change, dict[str, str]]] = []
    log = log_of(told)
    names = ["VmResettingEvent", "VmMessageEvent", "VmFailoverFailed"]
    events = [an_event(getattr(vim.event, name), key) for key, name in enumerate(names)]
    show(log, [events[2], events[0], events[1]])
    show(log, [events[1], events[2]])
    show(log, an_event(vim.event.VmResettingEvent, 9), name="latestPage[9]")
    show(log, None)
    assert [words["event"] for _, words in told] == [*names, "VmResettingEvent"]


def test_a_guest_that_switches_itself_off_is_nobodys_deed() -> None:
    told: list[tuple[Change, dict[str, str]]] = []
    users = ["", "User", "VSPHERE.LOCAL\\vch", "VSPHERE.LOCAL\\anna"]
    show(log_of(told), [an_event(vim.event.VmPoweredOffEvent, key, user) for key, user in enumerate(users)])
    assert [words["user"] for _, words in told] == ["VSPHERE.LOCAL\\anna"]


def test_words_are_bounded_and_on_one_line() -> None:
    told: list[tuple[Change, dict[str, str]]] = []
    event = an_event(vim.event.VmResettingEvent, 1, "u" * 5000, fullFormattedMessage="a\nb\x1b[31m" + "c" * 5000)
    show(log_of(told), [event])
    ((_, words),) = told
    assert (len(words["user"]), len(words["message"])) == (MAX_NAME, MAX_MESSAGE)
    assert words["message"].startswith("a b[31mc")


def test_what_was_told_is_not_remembered_for_ever() -> None:
    told: list[tuple[Change, dict[str, str]]] = []
    log = log_of(told)
    for first in range(0, 100 * PAGE, PAGE):
        show(log, [an_event(vim.event.VmResettingEvent, key) for key in range(first, first + PAGE)])
    assert len(told) == 100 * PAGE
    assert len(log._told) <= event_source._MAX_TOLD
