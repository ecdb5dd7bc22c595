"""Restart policies: which ends are followed by another run, and what ends that."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from fake_driver import FakeMachine
from patience import PATIENCE_S, until

from portlayer.errors import ConflictError, DriverError, InvalidArgumentError
from portlayer.execution import Container, restarts, states
from portlayer.execution.restarts import Pauses, wanted
from portlayer.v1 import execution_pb2, types_pb2

if TYPE_CHECKING:
    from conftest import Host

Policy = types_pb2.RestartPolicy
ALWAYS = Policy(kind=Policy.KIND_ALWAYS)
UNLESS_STOPPED = Policy(kind=Policy.KIND_UNLESS_STOPPED)
ON_FAILURE = Policy(kind=Policy.KIND_ON_FAILURE)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "FIRST_PAUSE_S", 0.01)


async def reaches(container: Container, status: types_pb2.ContainerStatus) -> None:
    await until(lambda: container.state.status == status)


@pytest.mark.parametrize(
    ("policy", "exit_code", "earlier", "again"),
    [
        (Policy(), 1, 0, False),
        (ALWAYS, 0, 100, True),
        (UNLESS_STOPPED, 0, 100, True),
        (ON_FAILURE, 0, 0, False),
        (ON_FAILURE, 1, 100, True),
        (Policy(kind=Policy.KIND_ON_FAILURE, max_retries=3), 1, 2, True),
        (Policy(kind=Policy.KIND_ON_FAILURE, max_retries=3), 1, 3, False),
    ],
)
def test_which_ends_are_followed_by_another_run(policy: Policy, exit_code: int, earlier: int, again: bool) -> None:
    assert wanted(policy, exit_code=exit_code, restarts=earlier) is again


def test_pauses_grow_up_to_a_minute_and_shrink_after_a_long_run() -> None:
    pauses = Pauses()
    grown = [pauses.after(1) for _ in range(15)]
    assert grown[:3] == [restarts.FIRST_PAUSE_S, 2 * restarts.FIRST_PAUSE_S, 4 * restarts.FIRST_PAUSE_S]
    assert grown[-1] == restarts.LONGEST_PAUSE_S
    assert pauses.after(11) == restarts.FIRST_PAUSE_S


async def test_failures_are_tried_again_so_many_times(host: Host) -> None:
    container = await host.create("exit", "4", restart=Policy(kind=Policy.KIND_ON_FAILURE, max_retries=2))
    ending = container.next_exit()
    await container.start()
    async with asyncio.timeout(PATIENCE_S):
        assert (await ending).exit_code == 4  # those who wait hear of each end, as Docker's users do
    await until(lambda: host.actions().count("die") >= 3)
    assert container.state.status == states.EXITED
    assert container.state.restart_count == 2
    assert host.actions() == ["create", *["start", "die"] * 3]
    await container.start()  # by hand: counted anew
    await until(lambda: host.actions().count("die") >= 6)
    assert container.state.status == states.EXITED
    await container.remove(force=True)


async def test_a_stop_or_a_kill_is_final(host: Host) -> None:
    for end in (lambda one: one.stop(60, 0), lambda one: one.kill(15), lambda one: one.kill(9)):
        container = await host.create("sleep", restart=ALWAYS)
        await container.start()
        await end(container)
        await reaches(container, states.EXITED)
        await container.settled.wait()
        assert container.state.status == states.EXITED
        assert container.state.restart_count == 0


async def test_other_signals_leave_the_policy_in_force(host: Host) -> None:
    container = await host.create("sleep", restart=UNLESS_STOPPED)
    await container.start()
    await container.kill(1)
    assert not container.record.halted
    await container.remove(force=True)


async def test_a_vm_that_dies_is_started_again(host: Host) -> None:
    container = await host.create("stubborn", restart=ON_FAILURE)
    await container.start()
    await container.machine.power_off()
    await until(lambda: container.state.restart_count > 0 and container.state.status == states.RUNNING)
    await container.remove(force=True)


async def test_while_it_waits_to_start_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "FIRST_PAUSE_S", 60)
    for end in ("stop", "kill", "remove"):
        container = await host.create("exit", "3", name=end, restart=ALWAYS)
        await container.start()
        await reaches(container, states.RESTARTING)
        assert await container.start() is False
        for operation in (container.pause(), container.processes()):
            with pytest.raises(ConflictError, match="is restarting, wait until the container is running"):
                await operation
        with pytest.raises(ConflictError, match="is restarting"):
            container.execs.create(execution_pb2.ExecSpec(args=["echo"]))
        with pytest.raises(ConflictError, match="container is restarting: stop the container before removing"):
            await container.remove(force=False)
        ending = container.next_exit()
        if end == "stop":
            assert await container.stop(1, 0) is True
        elif end == "kill":
            await container.kill(9)
        else:
            await container.remove(force=True)
        async with asyncio.timeout(PATIENCE_S):
            assert (await ending).exit_code == 3
        assert container.state.status == (states.REMOVING if end == "remove" else states.EXITED)


async def test_a_host_that_cannot_start_it_just_now_is_asked_again(host: Host) -> None:
    container = await host.create("stubborn", restart=ALWAYS)
    await container.start()
    assert isinstance(container.machine, FakeMachine)
    container.machine.fail_next["power_on"] = DriverError("no memory")
    await container.machine.power_off()
    await until(lambda: container.state.restart_count >= 2 and container.state.status == states.RUNNING)
    await container.remove(force=True)


async def test_a_first_start_that_fails_is_not_repeated(host: Host) -> None:
    container = await host.create("stubborn", restart=ALWAYS)
    assert isinstance(container.machine, FakeMachine)
    container.machine.fail_next["power_on"] = DriverError("no memory")
    with pytest.raises(DriverError):
        await container.start()
    assert container.state.status == states.CREATED


async def test_policies_hold_over_a_restart_of_the_port_layer(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of containers that were stopped, and of those that ended or waited when the port layer went away."""
    stopped = {
        name: await host.create("stubborn", name=name, restart=policy)
        for name, policy in (("always", ALWAYS), ("unless", UNLESS_STOPPED), ("failing", ON_FAILURE))
    }
    for container in stopped.values():
        await container.start()
        await container.stop(0, 0)
        await container.settled.wait()
    waiting = await host.create("exit", "3", name="waiting", restart=UNLESS_STOPPED)
    with monkeypatch.context() as patch:
        patch.setattr(restarts, "FIRST_PAUSE_S", 60)
        await waiting.start()
        await reaches(waiting, states.RESTARTING)
        await waiting.settled.wait()
        lost = await host.create("stubborn", name="lost", restart=UNLESS_STOPPED)
        await lost.start()
        await host.manager.close()
        await lost.machine.power_off()  # with the host
    await host.restart()
    await reaches(host.manager.get("always"), states.RUNNING)
    again = host.manager.get("lost")
    await until(lambda: again.state.restart_count > 0 and again.live)
    await until(lambda: host.manager.get("waiting").state.restart_count >= 2)
    assert host.manager.get("unless").state.status == states.EXITED
    assert host.manager.get("failing").state.status == states.EXITED
    for container in host.manager.containers():
        await container.remove(force=True)


async def test_updates(host: Host) -> None:
    container = await host.create("exit", "3")
    with pytest.raises(InvalidArgumentError, match="maximum retry count"):
        await container.update(Policy(kind=Policy.KIND_ALWAYS, max_retries=2))
    assert isinstance(container.machine, FakeMachine)
    container.machine.fail_next["write_record"] = DriverError("full")
    with pytest.raises(DriverError):
        await container.update(ALWAYS)
    assert container.spec.restart == Policy()
    await container.update(Policy(kind=Policy.KIND_ON_FAILURE, max_retries=1))
    await container.start()
    await until(lambda: host.actions().count("die") >= 2)
    assert container.state.status == states.EXITED
    removed = await host.create("echo", auto_remove=True)
    with pytest.raises(ConflictError, match="AutoRemove"):
        await removed.update(ALWAYS)
    with pytest.raises(InvalidArgumentError, match="AutoRemove"):
        await host.create("echo", auto_remove=True, restart=ALWAYS)


async def test_the_end_of_the_last_run_is_known_during_the_next(host: Host) -> None:
    container = await host.create("stubborn")
    await container.start()
    await container.stop(0, 0)
    finished = container.state.finished_unix_ns
    await container.start()
    assert container.state.finished_unix_ns == finished < container.state.started_unix_ns
    await container.remove(force=True)
