"""What others do to a container's machine: the container follows, and what it ordered itself is no news to it."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

from patience import PATIENCE_S, until

from portlayer.drivers.base import Change, MachineChange, PowerState
from portlayer.errors import NotFoundError
from portlayer.execution import Container, states
from portlayer.v1 import types_pb2

if TYPE_CHECKING:
    from conftest import Host


async def told(host: Host, container: Container, kind: Change, **attributes: str) -> None:
    """The driver tells, and the port layer has done what follows."""
    before = set(asyncio.all_tasks())
    host.driver.tell(MachineChange(container.id, kind, attributes))
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(asyncio.all_tasks() - before))


async def test_a_vm_that_was_powered_on_starts_its_container(host: Host) -> None:
    container = await host.create("sleep")
    await container.machine.power_on()
    host.driver.tell(MachineChange(container.id, Change.POWERED_ON))
    await until(lambda: container.state.status == states.RUNNING)
    assert host.actions() == ["create", "start"]
    await container.remove(force=True)


async def test_a_power_on_of_ours_that_is_told_late_starts_nothing(host: Host) -> None:
    container = await host.create("exit", "0")
    await container.start()
    await until(lambda: container.state.status == states.EXITED)
    await container.settled.wait()
    await told(host, container, Change.POWERED_ON)
    assert host.actions() == ["create", "start", "die"]
    await container.remove(force=True)


async def test_a_vm_that_was_restarted_runs_its_container_again(host: Host) -> None:
    """As high availability does: nobody has seen it off."""
    container = await host.create("sleep")
    await container.start()
    for _ in range(2):
        started = host.actions().count("start")
        await host.driver.machines[container.id].restart()
        await until(lambda: host.actions().count("start") > started)  # noqa: B023
        assert container.state.status == states.RUNNING
    assert host.actions() == ["create", *["start", "die"] * 2, "start"]
    assert await host.driver.machines[container.id].power_state() is PowerState.RUNNING
    await container.remove(force=True)


async def test_a_vm_that_is_restarted_after_a_stop_stays_as_it_is(host: Host) -> None:
    container = await host.create("stubborn")
    await container.start()
    await container.halt()
    await host.driver.machines[container.id].restart()
    await until(lambda: container.state.status == states.EXITED)
    assert (container.state.exit_code, host.actions()) == (137, ["create", "start", "die"])
    await container.remove(force=True)


async def test_a_suspended_vm_is_a_paused_container(host: Host) -> None:
    container = await host.create("sleep")
    await container.start()
    await container.machine.pause()
    await told(host, container, Change.SUSPENDED)
    assert container.state.status == states.PAUSED
    await told(host, container, Change.SUSPENDED)
    await container.machine.resume()
    await told(host, container, Change.POWERED_ON)
    assert container.state.status == states.RUNNING
    assert host.actions() == ["create", "start", "pause", "unpause"]
    await container.remove(force=True)


async def test_our_own_pause_is_no_news(host: Host) -> None:
    container = await host.create("sleep")
    await container.start()
    await container.pause()
    await told(host, container, Change.SUSPENDED)
    await container.resume()
    await told(host, container, Change.POWERED_ON)
    assert host.actions() == ["create", "start", "pause", "unpause"]
    await container.remove(force=True)


async def test_a_removed_vm_is_a_removed_container(host: Host) -> None:
    always = types_pb2.RestartPolicy(kind=types_pb2.RestartPolicy.KIND_ALWAYS)
    for container in (await host.create("sleep", name="idle"), await host.create("sleep", restart=always)):
        if container.name != "idle":
            await container.start()
        machine = host.driver.machines.pop(container.id)
        await machine.power_off()
        shutil.rmtree(machine.directory)
        host.driver.tell(MachineChange(container.id, Change.GONE))
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.shield(container.removed)  # not until it is done: who forgets it is called after that
        try:
            found = host.manager.get(container.id)
        except NotFoundError:
            found = None
        assert found is None
    assert host.actions().count("destroy") == 2


async def test_what_leaves_a_container_as_it_is_is_an_event(host: Host) -> None:
    container = await host.create("sleep")
    states_alone = {Change.POWERED_ON, Change.POWERED_OFF, Change.SUSPENDED, Change.GONE}
    for kind in (one for one in Change if one not in states_alone):
        await told(host, container, kind, user="anna")
    *_, last = host.events._history(0, 0)
    assert (last.attributes["user"], last.attributes["image"]) == ("anna", "box")
    assert host.actions() == [
        *("create", "vm-power", "migrate", "failover", "question", "alarm", "vm-rename", "vm-move", "connection")
    ]
    assert container.state.status == states.CREATED
    host.driver.tell(MachineChange("0" * 64, Change.GONE))  # no container of ours
    await container.remove(force=True)
