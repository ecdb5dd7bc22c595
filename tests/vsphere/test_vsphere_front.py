"""The front before the simulator: what it adds of a vCenter, and the trouble that it makes, seen with plain pyvmomi."""

from __future__ import annotations

import http.client
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pyVmomi import vim, vmodl
from vsphere_front import Front
from vsphere_plain import Plain, extra, nic, outcome, serial_port
from vsphere_simulator import HOST, Simulator, session
from vsphere_trouble import (
    cut_after,
    cut_before,
    drop_session,
    fail_task,
    fail_task_after,
    held,
    raise_fault,
    restart,
    slow,
    unavailable,
)
from vsphere_waiting import PATIENCE_S

_BROKEN = (OSError, http.client.HTTPException)


@pytest.fixture
def plain(front: Front) -> Iterator[Plain]:
    """A session through the front. The machines that a test leaves go at its end."""
    with front.connected() as instance:
        plain = Plain(instance)
        before = plain.machines()
        front.clear()
        yield plain
    front.clear()
    with front.connected() as instance:
        front.settle()
        Plain(instance).clear(kept=before)


def folder(front: Front, method: str, path: str, body: bytes | None = None, cookie: str = "") -> tuple[int, bytes]:
    context = front.simulator.certificate.client_context()
    connection = http.client.HTTPSConnection(HOST, front.port, context=context)
    try:
        where = f"/folder/{path}?dcPath=DC0&dsName=LocalDS_0"
        connection.request(method, where, body, {"Cookie": cookie} if cookie else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def on(plain: Plain, name: str, **config: Any) -> Any:
    machine = outcome(plain.create(name, [serial_port("a" * 32), nic()], **config))
    outcome(machine.PowerOnVM_Task())
    return machine


def test_calls_pass_and_are_counted(front: Front, plain: Plain) -> None:
    machine = outcome(plain.create("one"))
    outcome(machine.PowerOnVM_Task())
    assert machine.runtime.powerState == "poweredOn"
    assert front.calls["CreateVM_Task"] == front.forwarded["CreateVM_Task"] == 1


def test_long_polls_do_not_hold_up_calls(plain: Plain) -> None:
    collector = plain.content.propertyCollector.CreatePropertyCollector()
    query = vmodl.query.PropertyCollector
    machine = outcome(plain.create("watched"))
    spec = query.FilterSpec(
        propSet=[query.PropertySpec(type=vim.VirtualMachine, pathSet=["runtime.powerState"])],
        objectSet=[query.ObjectSpec(obj=machine)],
    )
    collector.CreateFilter(spec, False)
    version = collector.WaitForUpdatesEx("", query.WaitOptions(maxWaitSeconds=1)).version
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(collector.WaitForUpdatesEx, version, query.WaitOptions(maxWaitSeconds=60))
        outcome(machine.PowerOnVM_Task())
        changes = [c for f in waiting.result().filterSet for o in f.objectSet for c in o.changeSet]
    assert ("runtime.powerState", "poweredOn") in [(change.name, change.val) for change in changes]


def test_stale_change_is_refused(plain: Plain) -> None:
    machine = outcome(plain.create("guarded"))
    seen = machine.config.changeVersion
    outcome(machine.ReconfigVM_Task(vim.vm.ConfigSpec(changeVersion=seen, annotation="first")))
    with pytest.raises(vim.fault.ConcurrentAccess):
        outcome(machine.ReconfigVM_Task(vim.vm.ConfigSpec(changeVersion=seen, annotation="second")))
    assert machine.config.annotation == "first"
    outcome(machine.ReconfigVM_Task(vim.vm.ConfigSpec(changeVersion=machine.config.changeVersion, annotation="third")))
    assert machine.config.annotation == "third"


def test_of_two_changes_at_once_one_wins(plain: Plain) -> None:
    machine = outcome(plain.create("contended"))
    seen = machine.config.changeVersion
    tasks = [machine.ReconfigVM_Task(vim.vm.ConfigSpec(changeVersion=seen, annotation=str(n))) for n in range(4)]
    lost = 0
    for task in tasks:
        try:
            outcome(task)
        except vim.fault.ConcurrentAccess:
            lost += 1
    assert lost == 3


def test_taken_name_is_refused(front: Front, plain: Plain) -> None:
    first = outcome(plain.create("twice"))
    with pytest.raises(vim.fault.DuplicateName) as raised:
        outcome(plain.create("twice"))
    assert raised.value.object == first
    assert front.forwarded["CreateVM_Task"] == 1


def test_files_need_a_session(front: Front, plain: Plain) -> None:
    assert folder(front, "PUT", "secret.bin", b"x")[0] == 401
    assert not (front.simulator.datastore_dir() / "secret.bin").exists()
    cookie = plain.content.sessionManager._stub.cookie.partition(";")[0]
    content = bytes(range(256)) * 4096
    assert folder(front, "PUT", "open/file.bin", content, cookie)[0] in (200, 201)
    assert folder(front, "GET", "open/file.bin", cookie=cookie) == (200, content)
    assert folder(front, "HEAD", "open/file.bin", cookie=cookie) == (200, b"")
    assert folder(front, "GET", "open/file.bin")[0] == 401
    shutil.rmtree(front.simulator.datastore_dir() / "open")


def test_unknown_session_reads_nothing(front: Front, plain: Plain) -> None:
    machine = outcome(plain.create("private"))
    front.drop_sessions()
    with pytest.raises(vim.fault.NotAuthenticated):
        _ = machine.name
    plain.content.sessionManager.Login(front.simulator.user, front.simulator.password)
    assert machine.name == "private"


def test_denied_privilege(front: Front, plain: Plain) -> None:
    front.denied.add("VirtualMachine.Inventory.Create")
    with pytest.raises(vim.fault.NoPermission) as raised:
        plain.create("forbidden")
    assert raised.value.privilegeId == "VirtualMachine.Inventory.Create"
    assert raised.value.object == plain.folder


def test_instant_clone(plain: Plain) -> None:
    source = on(plain, "parent", extraConfig=[vim.option.OptionValue(key="guestinfo.a", value="1")])
    spec = vim.vm.InstantCloneSpec(
        name="clone",
        location=vim.vm.RelocateSpec(),
        config=[vim.option.OptionValue(key="guestinfo.b", value="2")],
        biosUuid="11111111-2222-3333-4444-555555555555",
    )
    clone = outcome(source.InstantClone_Task(spec))
    assert (clone.name, clone.runtime.powerState) == ("clone", "poweredOn")
    assert clone.config.uuid == "11111111-2222-3333-4444-555555555555"
    assert clone.config.instanceUuid != source.config.instanceUuid
    told = extra(clone)
    assert (told["guestinfo.a"], told["guestinfo.b"], told["lab.forkedFrom"]) == ("1", "2", source._moId)
    kinds = (vim.vm.device.VirtualSerialPort, vim.vm.device.VirtualEthernetCard)
    theirs, own = ([d for d in vm.config.hardware.device if isinstance(d, kinds)] for vm in (source, clone))
    assert [type(device) for device in own] == [type(device) for device in theirs]
    assert own[0].backing.serviceURI == theirs[0].backing.serviceURI
    assert own[1].macAddress != theirs[1].macAddress


def test_instant_clone_of_what_is_off(plain: Plain) -> None:
    source = outcome(plain.create("off"))
    with pytest.raises(vim.fault.InvalidPowerState):
        outcome(source.InstantClone_Task(vim.vm.InstantCloneSpec(name="clone", location=vim.vm.RelocateSpec())))
    assert plain.machines() == ["off"]


def test_instant_clone_changes_no_network_port(plain: Plain) -> None:
    source = on(plain, "parent")
    port = next(d for d in source.config.hardware.device if isinstance(d, vim.vm.device.VirtualSerialPort))
    port.backing.serviceURI = "vch://" + "b" * 32
    change = vim.vm.device.VirtualDeviceSpec(operation="edit", device=port)
    location = vim.vm.RelocateSpec(deviceChange=[change])
    with pytest.raises(vim.fault.InvalidDeviceSpec):
        outcome(source.InstantClone_Task(vim.vm.InstantCloneSpec(name="clone", location=location)))
    assert plain.machines() == ["parent"]


def test_task_fails_with_nothing_done(front: Front, plain: Plain) -> None:
    injection = front.inject("CreateVM_Task", fail_task(vim.fault.NoDiskSpace(datastore="LocalDS_0")), skip=1)
    outcome(plain.create("before"))
    with pytest.raises(vim.fault.NoDiskSpace) as raised:
        outcome(plain.create("never"))
    assert raised.value.datastore == "LocalDS_0"
    outcome(plain.create("after"))
    assert plain.machines() == ["after", "before"]
    assert injection.hits == 1


def test_task_fails_with_all_done(front: Front, plain: Plain) -> None:
    front.inject("CreateVM_Task", fail_task_after(vmodl.fault.SystemError(reason="lost the host")))
    with pytest.raises(vmodl.fault.SystemError):
        outcome(plain.create("done"))
    assert plain.machines() == ["done"]


def test_method_is_refused(front: Front, plain: Plain) -> None:
    front.inject("CreateVM_Task", raise_fault(vim.fault.TaskInProgress(task=vim.Task("task-1"))))
    with pytest.raises(vim.fault.TaskInProgress):
        plain.create("refused")
    assert front.forwarded["CreateVM_Task"] == 0


@pytest.mark.parametrize(("action", "done"), [(cut_before(), []), (cut_after(), ["lost"])])
def test_connection_breaks(front: Front, plain: Plain, action: Any, done: list[str]) -> None:
    front.inject("CreateVM_Task", action)
    with pytest.raises(_BROKEN):
        plain.create("lost")
    assert plain.machines() == done


def test_unavailable_for_a_moment(front: Front, plain: Plain) -> None:
    front.inject("CreateVM_Task", unavailable())
    with pytest.raises((vim.fault.HttpFault, *_BROKEN)):
        plain.create("not yet")
    outcome(plain.create("now"))
    assert plain.machines() == ["now"]


def test_calls_wait(front: Front, plain: Plain) -> None:
    gate = threading.Event()
    injection = front.inject("CreateVM_Task", held(gate))
    front.inject("CurrentTime", slow(0.01))
    with ThreadPoolExecutor(1) as thread:
        creating = thread.submit(plain.create, "late")
        assert injection.hit.wait(PATIENCE_S)
        assert plain.content.rootFolder.name, "other calls go on"
        assert front.forwarded["CreateVM_Task"] == 0
        gate.set()
        outcome(creating.result())


def test_session_ends_at_a_call(front: Front, plain: Plain) -> None:
    front.inject("CreateVM_Task", drop_session())
    with pytest.raises(vim.fault.NotAuthenticated):
        plain.create("stranger")
    plain.content.sessionManager.Login(front.simulator.user, front.simulator.password)
    assert plain.machines() == []


def test_session_ends_in_a_long_poll(front: Front, plain: Plain) -> None:
    collector = plain.content.propertyCollector.CreatePropertyCollector()
    query = vmodl.query.PropertyCollector
    version = collector.WaitForUpdatesEx("", query.WaitOptions(maxWaitSeconds=1)).version
    injection = front.inject("WaitForUpdatesEx", slow(0))
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(collector.WaitForUpdatesEx, version, query.WaitOptions(maxWaitSeconds=60))
        assert injection.hit.wait(PATIENCE_S)
        front.drop_sessions()
        with pytest.raises(vim.fault.NotAuthenticated):
            waiting.result()


def test_restart(front: Front, plain: Plain) -> None:
    outcome(plain.create("kept"))
    port = front.port
    front.down()
    with pytest.raises(_BROKEN):
        plain.machines()
    front.up()
    assert front.port == port
    with pytest.raises(vim.fault.NotAuthenticated):
        plain.machines()
    plain.content.sessionManager.Login(front.simulator.user, front.simulator.password)
    assert plain.machines() == ["kept"]


@pytest.mark.parametrize(("after", "done"), [(False, []), (True, ["meanwhile"])])
def test_restart_at_a_call(front: Front, plain: Plain, after: bool, done: list[str]) -> None:
    front.inject("CreateVM_Task", restart(0.0, after=after))
    with pytest.raises(_BROKEN):
        plain.create("meanwhile")
    front.settle()
    simulator: Simulator = front.simulator
    with simulator.connected() as instance:
        assert Plain(instance).machines() == done


def test_front_does_not_let_strangers_in(front: Front) -> None:
    with pytest.raises(vim.fault.InvalidLogin), session(front.port, front.simulator.certificate, "else", "wrong"):
        pass
