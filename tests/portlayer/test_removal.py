"""Removing containers: for whoever asks; and in the background, however long the hypervisor is away."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

import pytest
from fake_driver import FakeMachine
from patience import PATIENCE_S, until

from portlayer.drivers.base import Change, Machine, MachineChange
from portlayer.errors import ConflictError, DriverError, ExhaustedError, LaunchError, NotFoundError
from portlayer.execution import Container, removal, states
from portlayer.execution.run import Run
from portlayer.v1 import types_pb2

if TYPE_CHECKING:
    from conftest import Host


class Outage:
    """A hypervisor that is away: until it is back it removes nothing, and writes no record."""

    def __init__(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        self.over = False
        self.refused = self.destroyed = 0
        destroy, write_record = host.driver.destroy, FakeMachine.write_record

        async def destroy_if_there(machine: Machine) -> None:
            self._require_over()
            await destroy(machine)
            self.destroyed += 1

        async def write_if_there(machine: FakeMachine, record: bytes) -> None:
            self._require_over()
            await write_record(machine, record)

        monkeypatch.setattr(host.driver, "destroy", destroy_if_there)
        monkeypatch.setattr(FakeMachine, "write_record", write_if_there)

    async def refuses(self, more: int) -> None:
        """Returns when it has been asked in vain so many more times."""
        wanted = self.refused + more
        await until(lambda: self.refused >= wanted)

    def _require_over(self) -> None:
        if not self.over:
            self.refused += 1
            raise DriverError("vCenter does not answer")


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(removal, "LONGEST_PAUSE_S", 0.02)


def end(container: Container) -> None:
    """Its program, a "sleep", ends."""
    assert isinstance(container.machine, FakeMachine)
    assert container.machine.agent is not None
    container.machine.agent.processes["init"].signals.put_nowait(15)


async def reaches(container: Container, status: types_pb2.ContainerStatus) -> None:
    await until(lambda: container.state.status == status)


async def gone(container: Container) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.shield(container.removed)


def trying(container: Container) -> bool:
    """Whether it is removed in the background, or is to be."""
    name = f"remove {container.id[:12]} in the background"
    return any(task.get_name() == name for task in asyncio.all_tasks())


async def given_up(container: Container) -> None:
    await until(lambda: not trying(container))


# --- for whoever asks


async def test_removal(host: Host) -> None:
    container = await host.create("stubborn", name="gone")
    await container.start()
    with pytest.raises(ConflictError, match="container is running: stop the container before removing"):
        await container.remove(force=False)
    await container.remove(force=True)
    with pytest.raises(NotFoundError, match="No such container: gone"):
        host.manager.get("gone")
    assert not host.driver.machines
    assert not list((host.root / "machines").iterdir())
    await host.create("echo", name="gone")


async def test_a_failed_removal_is_seen_and_can_be_repeated(host: Host) -> None:
    container = await host.create("echo")
    host.driver.fail_next["destroy"] = DriverError("the disk is locked")
    with pytest.raises(DriverError):
        await container.remove(force=False)
    assert container.state.status == states.DEAD
    assert "the disk is locked" in container.state.error
    await container.remove(force=True)


async def test_auto_remove_after_exit_and_after_a_failed_start(host: Host) -> None:
    ends, fails = await host.create("echo", auto_remove=True), await host.create("nosuch", auto_remove=True)
    await ends.start()
    with pytest.raises(LaunchError):
        await fails.start()
    await asyncio.gather(gone(ends), gone(fails))
    assert not host.driver.machines


async def test_a_full_disk_does_not_prevent_removal(host: Host) -> None:
    container = await host.create("stubborn")
    assert isinstance(container.machine, FakeMachine)
    container.machine.fail_next["write_record"] = ExhaustedError("no space left on device")
    await container.remove(force=True)
    assert not host.driver.machines


# --- in the background


@pytest.mark.usefixtures("short_pauses")
async def test_what_ends_while_the_hypervisor_is_away_is_removed_once_it_is_back(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = await host.create("sleep", auto_remove=True)
    await container.start()
    outage = Outage(host, monkeypatch)
    end(container)
    await outage.refuses(4)
    await reaches(container, states.DEAD)  # between attempts
    assert container.state.error == "removal failed: vCenter does not answer"
    assert host.manager.get(container.id) is container
    outage.over = True
    await gone(container)
    assert not host.driver.machines
    assert outage.destroyed == 1
    assert host.actions() == ["create", "start", "die", "destroy"]
    await given_up(container)


@pytest.mark.usefixtures("short_pauses")
async def test_who_waits_for_a_removal_is_told_of_an_attempt_that_fails(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`docker run --rm` does not stand there for as long as the hypervisor is away."""
    container = await host.create("sleep", auto_remove=True)
    await container.start()
    waiting, outage = container.life.removal(), Outage(host, monkeypatch)
    end(container)
    async with asyncio.timeout(PATIENCE_S):
        ended = await asyncio.shield(waiting)
    told = f"container {container.id[:12]} ended with exit code 143, but is not removed yet: vCenter does not answer"
    assert (ended.exit_code, ended.error) == (143, told)
    waiting, outage.over = container.life.removal(), True
    async with asyncio.timeout(PATIENCE_S):
        ended = await asyncio.shield(waiting)
    assert (ended.exit_code, ended.error) == (143, "")


@pytest.mark.usefixtures("short_pauses")
async def test_what_cannot_start_while_the_hypervisor_is_away_is_removed_once_it_is_back(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = await host.create("sleep", auto_remove=True)
    outage = Outage(host, monkeypatch)
    with pytest.raises(DriverError, match="vCenter does not answer"):
        await container.start()
    await outage.refuses(3)
    outage.over = True
    await gone(container)
    assert not host.driver.machines


@pytest.mark.usefixtures("short_pauses")
async def test_a_vm_that_is_gone_is_a_container_that_is_removed_once_that_is_possible(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = await host.create("sleep")
    await container.start()
    outage = Outage(host, monkeypatch)
    machine = host.driver.machines.pop(container.id)
    await machine.power_off()
    shutil.rmtree(machine.directory)
    host.driver.tell(MachineChange(container.id, Change.GONE))
    await outage.refuses(4)
    outage.over = True
    await gone(container)
    assert host.actions().count("destroy") == 1


@pytest.mark.usefixtures("short_pauses")
async def test_a_removal_goes_on_in_the_next_port_layer(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    ended, removing = await host.create("sleep", auto_remove=True), await host.create("echo")
    await ended.start()
    removing.state.status = states.REMOVING
    await removing.machine.write_record(removing.record.SerializeToString())
    outage = Outage(host, monkeypatch)
    end(ended)
    await outage.refuses(2)
    for _ in range(2):
        await host.restart()
        again = host.manager.containers()
        assert {one.id for one in again} == {ended.id, removing.id}
        for one in again:
            await reaches(one, states.DEAD)
        await outage.refuses(4)
    outage.over = True
    for one in again:
        await gone(one)
    assert not host.driver.machines
    assert outage.destroyed == 2


@pytest.mark.parametrize("status", [states.STARTING, states.CREATED, states.EXITED])
async def test_what_was_to_be_removed_when_the_port_layer_ended_is_removed(
    host: Host, status: types_pb2.ContainerStatus
) -> None:
    """One that was never started is still to be."""
    ended, waiting = await host.create("echo", auto_remove=True), await host.create("echo", auto_remove=True)
    ended.state.status = status
    ended.record.run = 1
    await ended.machine.write_record(ended.record.SerializeToString())
    manager = await host.restart()
    await until(lambda: len(manager.containers()) == 1)
    assert list(host.driver.machines) == [one.id for one in manager.containers()] == [waiting.id]


async def test_who_removes_it_meanwhile_ends_the_attempts(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    container = await host.create("sleep", auto_remove=True)
    await container.start()
    monkeypatch.setattr(removal, "FIRST_PAUSE_S", 60.0)
    outage = Outage(host, monkeypatch)
    end(container)
    await reaches(container, states.DEAD)
    with pytest.raises(DriverError, match="vCenter does not answer"):
        await container.remove(force=True)
    assert trying(container)
    outage.over = True
    await asyncio.gather(*(container.remove(force=True) for _ in range(2)))
    await given_up(container)
    assert outage.destroyed == 1
    assert host.actions().count("destroy") == 1


async def test_the_port_layer_ends_without_waiting_for_the_next_attempt(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = await host.create("sleep", auto_remove=True)
    await container.start()
    monkeypatch.setattr(removal, "FIRST_PAUSE_S", 60.0)
    Outage(host, monkeypatch)
    end(container)
    await reaches(container, states.DEAD)
    async with asyncio.timeout(PATIENCE_S):
        await host.manager.close()
    assert not trying(container)


async def test_one_that_is_started_again_is_removed_after_that_run(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody is quicker than the removal."""
    container = await host.create("sleep", auto_remove=True)
    await container.start()
    close, go_on = Run.close, asyncio.Event()

    async def close_later(run: Run) -> None:
        await go_on.wait()
        await close(run)

    monkeypatch.setattr(Run, "close", close_later)
    ending = container.next_exit()
    await container.machine.power_off()
    await asyncio.shield(ending)
    starting = asyncio.create_task(container.start())
    async with asyncio.timeout(PATIENCE_S):
        while not container.life.lock.locked():
            await asyncio.sleep(0)
        go_on.set()
        assert await starting is True
    await given_up(container)
    assert container.state.status == states.RUNNING
    end(container)
    await gone(container)
    assert host.actions() == ["create", "start", "die", "start", "die", "destroy"]


async def test_what_cannot_be_removed_for_too_long_is_left_as_it_is(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = await host.create("sleep", auto_remove=True)
    await container.start()
    monkeypatch.setattr(removal, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(removal, "GIVE_UP_S", 0.05)
    outage = Outage(host, monkeypatch)
    end(container)
    await reaches(container, states.DEAD)
    await given_up(container)
    assert outage.refused == 3  # and pauses of 0.01, 0.02 and 0.04 seconds
    assert container.state.status == states.DEAD
    outage.over = True
    await container.remove(force=False)
    assert not host.driver.machines


def test_pauses_grow_up_to_a_minute_and_end_after_a_week() -> None:
    pauses = list(removal.pauses_s())
    assert pauses[:7] == [1, 2, 4, 8, 16, 32, 60]
    assert set(pauses[6:]) == {60}
    assert 7 * 86400 <= sum(pauses) < 7 * 86400 + 60
