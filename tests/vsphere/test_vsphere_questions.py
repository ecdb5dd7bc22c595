"""A power-on that vSphere asks something about, and waits: who is told, and what becomes of it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from pyVmomi import vim, vmodl
from vsphere_control import POWERING_ON
from vsphere_front import Action, Forward, Front
from vsphere_site import Site, spec
from vsphere_soap import Call, Reply, task_reply
from vsphere_trouble import held, raise_fault
from vsphere_waiting import PATIENCE_S, until

from portlayer.drivers.base import PowerState
from portlayer.drivers.vsphere import questions, vch_surroundings, virtual_machines
from portlayer.drivers.vsphere.driver import VsphereDriver
from portlayer.errors import ConflictError

Kind = vmodl.query.PropertyCollector.ObjectUpdate.Kind


def a_question(text: str, *labels: str, id: str = "1") -> Any:
    choices = [vim.ElementDescription(key=str(key), label=label, summary="") for key, label in enumerate(labels)]
    return vim.vm.QuestionInfo(
        id=id, text=text, choice=vim.option.ChoiceOption(choiceInfo=choices, defaultIndex=0, valueIsReadonly=True)
    )


MOVED = a_question("moved or copied?", "I _Moved It", "I _Copied It")


def told(driver: VsphereDriver, vm: Any, question: Any, kind: str = Kind.modify) -> None:
    """As the long poll does when vSphere asks, or, with None, was answered: the simulator never asks."""
    collector = vmodl.query.PropertyCollector
    change = collector.Change(name=questions.QUESTION, op="assign", val=question)
    changes = [change] if kind == Kind.modify else []
    driver.around.vms.apply(collector.ObjectUpdate(kind=kind, obj=vm, changeSet=changes))


async def a_machine(driver: VsphereDriver) -> Any:
    """One that the driver has been told of."""
    machine: Any = await driver.create(spec(), b"record")
    await until(lambda: driver.around.vms.known(machine.vm, virtual_machines.NAME) is not None)
    return machine


def asks(waits: threading.Event) -> Action:
    """A power-on that would go on when somebody has answered. `waits`: set when it has begun."""

    async def act(front: Front, call: Call, forward: Forward) -> Reply:
        vm = front.control.machine(call.reference("vm") or "")
        task = await front.controlled(front.control.new_task, vm, POWERING_ON)
        waits.set()
        return task_reply(call.method, task._moId)

    return act


async def test_a_start_that_meets_a_question_says_so_and_leaves_the_vm_off(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(virtual_machines, "ANSWER_S", 0.05)
    monkeypatch.setattr(vch_surroundings, "_CALL_OFF_S", PATIENCE_S)
    async with site.driver() as driver:
        machine = await a_machine(driver)
        waits = threading.Event()
        site.front.inject("PowerOnMultiVM_Task", asks(waits))
        starting = asyncio.ensure_future(machine.power_on())
        await asyncio.to_thread(waits.wait)
        told(driver, machine.vm, a_question("There is no more\nspace.", "_Retry", "Cancel"))
        asked = r"There is no more space\. \(Retry / Cancel\)"
        assert f"web-{machine.id[:12]} stands still until somebody answers in vCenter: There is no more" in caplog.text
        with pytest.raises(ConflictError, match=rf"nobody has answered: {asked}: power it on there, answer"):
            await starting
        assert site.front.calls["CancelTask"] == 1
        assert await machine.power_state() is PowerState.OFF
        told(driver, machine.vm, None)
        await machine.power_on()
        assert await machine.power_state() is PowerState.RUNNING


async def test_what_cannot_be_called_off_goes_on_when_it_is_answered(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtual_machines, "ANSWER_S", 0.05)
    monkeypatch.setattr(vch_surroundings, "_CALL_OFF_S", 0.05)
    async with site.driver() as driver:
        machine = await a_machine(driver)
        waits = threading.Event()
        site.front.inject("PowerOnMultiVM_Task", asks(waits))
        site.front.inject("CancelTask", raise_fault(vmodl.fault.NotSupported(msg="not this one")))
        starting = asyncio.ensure_future(machine.power_on())
        await asyncio.to_thread(waits.wait)
        told(driver, machine.vm, MOVED)
        with pytest.raises(
            ConflictError, match=r"moved or copied\? \(I Moved It / I Copied It\): answer there, and it starts"
        ):
            await starting


async def test_an_answer_in_time_lets_the_start_go_on(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual_machines, "ANSWER_S", 600.0)
    async with site.driver() as driver:
        machine = await a_machine(driver)
        answered = threading.Event()
        power_on = site.front.inject("PowerOnMultiVM_Task", held(answered))
        starting = asyncio.ensure_future(machine.power_on())
        await asyncio.to_thread(power_on.hit.wait)
        told(driver, machine.vm, MOVED)
        monkeypatch.setattr(virtual_machines, "ANSWER_S", 0.0)
        told(driver, machine.vm, None)
        answered.set()
        await starting
        assert not site.front.calls["CancelTask"]


async def test_what_else_changes_gives_no_more_time_for_an_answer(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual_machines, "ANSWER_S", 0.5)
    async with site.driver() as driver, asyncio.timeout(PATIENCE_S):
        machine = await a_machine(driver)
        told(driver, machine.vm, MOVED)
        asked = asyncio.ensure_future(driver.around.vms.asked(machine.vm))
        while not asked.done():
            told(driver, machine.vm, MOVED)
            await asyncio.sleep(0.001)
        assert await asked is MOVED


async def test_each_question_has_its_own_time_for_an_answer(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual_machines, "ANSWER_S", 600.0)
    async with site.driver() as driver:
        machine = await a_machine(driver)
        asked = asyncio.ensure_future(driver.around.vms.asked(machine.vm))
        for question in (MOVED, None):
            told(driver, machine.vm, question)
            await asyncio.wait((asked,), timeout=0.01)
            assert not asked.done()
        monkeypatch.setattr(virtual_machines, "ANSWER_S", 0.0)
        told(driver, machine.vm, another := a_question("no space", "Cancel", id="2"))
        assert await asked is another


async def test_a_question_that_was_answered_while_nobody_followed_is_none(site: Site) -> None:
    async with site.driver() as driver:
        machine = await a_machine(driver)
        told(driver, machine.vm, MOVED)
        assert driver.around.vms.known(machine.vm, questions.QUESTION) is not None
        told(driver, machine.vm, None, Kind.enter)
        assert driver.around.vms.known(machine.vm, questions.QUESTION) is None


def test_a_question_is_on_one_line_and_may_have_no_answers() -> None:
    assert questions.words(a_question("one\r\n\x1b[31mtwo", "Cancel")) == "one [31mtwo (Cancel)"
    assert questions.words(MOVED) == "moved or copied? (I Moved It / I Copied It)"
    assert questions.words(vim.vm.QuestionInfo(id="1", text="how?")) == "how?"
