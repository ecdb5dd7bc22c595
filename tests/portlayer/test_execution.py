"""The life of containers, on a hypervisor that has no VMs but speaks the real guest protocol."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

import pytest
from fake_agent import FakeAgent
from fake_driver import CAPACITY, FakeMachine
from patience import PATIENCE_S, until

from portlayer.drivers.base import PowerState
from portlayer.errors import (
    AlreadyExistsError,
    ConflictError,
    DriverError,
    InvalidArgumentError,
    LaunchError,
    NotFoundError,
    UnavailableError,
)
from portlayer.execution import Container, states, streams
from portlayer.execution import container as container_module
from portlayer.execution import ending as ending_module
from portlayer.execution.sizes import GUEST_RESERVE_BYTES, check_fits
from portlayer.execution.streams import Subscription
from portlayer.logs import LogQuery, read
from portlayer.v1 import execution_pb2, types_pb2

if TYPE_CHECKING:
    from conftest import Host


def agent_of(container: Container) -> FakeAgent:
    assert isinstance(container.machine, FakeMachine)
    assert container.machine.agent is not None
    return container.machine.agent


async def output_of(container: Container) -> bytes:
    return b"".join([chunk.data async for chunk in read(container.log, LogQuery())])


async def stands_still(container: Container, subscription: Subscription) -> None:
    """Returns when its program cannot go on before the client takes something."""
    journal = agent_of(container).processes["init"].journal
    await until(lambda: subscription.size > streams.HIGH_WATER_BYTES and journal.full)


async def run_to_end(container: Container) -> int:
    ending = container.next_exit()
    await container.start()
    async with asyncio.timeout(PATIENCE_S):
        return (await ending).exit_code


async def test_a_run_from_start_to_exit(host: Host) -> None:
    container = await host.create("mixed", name="one")
    assert container.state.status == states.CREATED
    assert await run_to_end(container) == 3
    assert container.state.status == states.EXITED
    assert container.state.exit_code == 3
    assert await output_of(container) == b"out\nerr\n"
    assert set(container.record.container.start_phases_ns) == {"machine", "agent", "exec"}
    await container.settled.wait()
    assert isinstance(container.machine, FakeMachine)
    assert container.machine.agent is None
    assert host.actions() == ["create", "start", "die"]


async def test_what_is_open_comes_from_the_image(host: Host) -> None:
    container = await host.create(labels={"own": "yes"})
    assert list(container.spec.process.cmd) == ["stubborn"]
    assert dict(container.spec.labels) == {"own": "yes", "from": "image"}
    assert container.spec.hostname == container.id[:12]
    assert container.spec.stop_signal == 15
    assert list(container.spec.process.env) == ["PATH=/bin", "A=image"]


async def test_a_second_start_changes_nothing(host: Host) -> None:
    container = await host.create("stubborn")
    assert await container.start() is True
    assert await container.start() is False
    await container.remove(force=True)


async def test_a_program_that_cannot_be_launched(host: Host) -> None:
    container = await host.create("nosuch")
    with pytest.raises(LaunchError, match="executable file not found") as raised:
        await container.start()
    assert raised.value.exit_code == 127
    assert container.state.exit_code == 127
    assert container.state.status == states.CREATED
    await container.remove(force=False)
    assert not host.driver.machines


async def test_a_vm_that_dies_while_it_boots(host: Host) -> None:
    container = await host.create("echo")
    assert isinstance(container.machine, FakeMachine)
    container.machine.boots = False
    with pytest.raises(UnavailableError, match="the VM stopped while it started"):
        await container.start()
    container.machine.boots = True
    assert await run_to_end(container) == 0


async def test_a_vm_that_vanishes_is_no_clean_exit(host: Host) -> None:
    container = await host.create("stubborn")
    await container.start()
    ending = container.next_exit()
    await container.machine.power_off()
    ended = await ending
    assert ended.exit_code == 137
    assert "without reporting an exit status" in ended.error


async def test_a_guest_that_sends_garbage_is_cut_off_or_heals(host: Host) -> None:
    container = await host.create("sleep")
    await container.start()
    agent_of(container).send_raw(bytes(range(256)) * 50)
    assert await container.stop(60, 0) is True
    assert container.state.exit_code == 143


async def test_a_broken_line_loses_nothing(host: Host) -> None:
    container = await host.create("cat", open_stdin=True)
    await container.start()
    ending = container.next_exit()
    for number in range(20):
        await container.stdin_write(f"{number}\n".encode())
        if number % 5 == 0:
            agent_of(container).cut()
    await container.stdin_close()
    assert (await ending).exit_code == 0
    assert (await output_of(container)).split() == [str(number).encode() for number in range(20)]


async def test_stop_asks_then_kills(host: Host) -> None:
    polite, stubborn = await host.create("sleep"), await host.create("stubborn")
    await polite.start()
    await stubborn.start()
    assert await polite.stop(60, 0) is True
    assert polite.state.exit_code == 143
    assert await stubborn.stop(0, 0) is True
    assert stubborn.state.exit_code == 137
    assert await stubborn.stop(0, 0) is False


async def test_kill_of_what_does_not_run(host: Host) -> None:
    container = await host.create("stubborn")
    with pytest.raises(ConflictError, match="is not running"):
        await container.kill(9)
    await container.start()
    await container.kill(9)
    assert container.state.status == states.EXITED


async def test_pause_and_resume(host: Host) -> None:
    container = await host.create("sleep")
    with pytest.raises(ConflictError):
        await container.pause()
    await container.start()
    await container.pause()
    with pytest.raises(ConflictError, match="already paused"):
        await container.pause()
    with pytest.raises(ConflictError, match="cannot start a paused container"):
        await container.start()
    with pytest.raises(ConflictError, match="paused"):
        container.execs.create(execution_pb2.ExecSpec(args=["echo"]))
    await container.resume()
    with pytest.raises(ConflictError, match="is not paused"):
        await container.resume()
    await container.pause()
    await container.stop(60, 0)  # wakes it first
    assert container.state.exit_code == 143


async def test_names(host: Host) -> None:
    first = await host.create("echo", name="first")
    with pytest.raises(AlreadyExistsError, match=f'"/first" is already in use by container "{first.id}"'):
        await host.create("echo", name="first")
    with pytest.raises(InvalidArgumentError, match="Invalid container name"):
        await host.create("echo", name="-bad")
    await host.manager.rename(first, "second")
    assert host.manager.get("second") is host.manager.get("/second") is host.manager.get(first.id[:12]) is first
    await host.create("echo", name="first")
    with pytest.raises(NotFoundError):
        await host.manager.create("", "third", types_pb2.ContainerSpec(image="unknown"))
    await host.create("echo", name="third")  # the failed one has not kept the name


async def test_create_is_idempotent_by_request_id(host: Host) -> None:
    spec = types_pb2.ContainerSpec(image="box")
    both = await asyncio.gather(*(host.manager.create("r1", "box1", spec) for _ in range(2)))
    assert both[0] is both[1]
    manager = await host.restart()
    assert (await manager.create("r1", "box1", spec)).id == both[0].id
    host.driver.fail_next["create"] = DriverError("full")
    with pytest.raises(DriverError):
        await manager.create("r2", "box2", spec)
    assert (await manager.create("r2", "box2", spec)).name == "box2"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"process": types_pb2.ProcessConfig(entrypoint_set=True)}, "no command specified"),
        ({"owner": "x" * 257}, "at most 256 printable"),
        ({"owner": "Ann\nMallory"}, "at most 256 printable"),
        ({"process": types_pb2.ProcessConfig(working_dir="here")}, "absolute path"),
        ({"process": types_pb2.ProcessConfig(capabilities_add=["MAGIC"])}, "unknown capability"),
        ({"process": types_pb2.ProcessConfig(env=["=x"])}, "invalid environment variable"),
        ({"resources": types_pb2.Resources(memory_bytes=1000)}, "Minimum memory limit"),
        ({"resources": types_pb2.Resources(memory_bytes=1 << 40)}, r"1024\.00 GiB.* no host has more than 8\.00 GiB"),
        ({"resources": types_pb2.Resources(memory_bytes=8 << 30)}, r"8\.00 GiB takes a VM that is 192 MiB larger"),
        ({"resources": types_pb2.Resources(nano_cpus=2_000_000_001)}, "there are only 2 CPUs"),
        ({"hostname": "x" * 64}, "host name"),
        ({"frontend_data": {"docker": b"x" * 70_000}}, "64 KiB"),
        ({"tmpfs": [types_pb2.TmpfsMount(target="/")]}, "tmpfs"),
    ],
)
async def test_impossible_specifications(host: Host, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        await host.manager.create("", "", types_pb2.ContainerSpec(image="box", **changes))  # type: ignore[arg-type]
    assert not host.driver.machines


async def test_a_memory_limit_sizes_the_vm(host: Host) -> None:
    container = await host.create(resources=types_pb2.Resources(memory_bytes=100 << 20, nano_cpus=1_500_000_000))
    spec = container.machine.spec
    assert spec.memory_bytes > 100 << 20
    assert spec.cpus == 2
    limit = CAPACITY.machine_memory_bytes - GUEST_RESERVE_BYTES
    container = await host.create(resources=types_pb2.Resources(memory_bytes=limit))
    assert container.machine.spec.memory_bytes == CAPACITY.machine_memory_bytes


def test_no_memory_limit_is_too_large_for_hosts_that_nobody_knows() -> None:
    check_fits(types_pb2.Resources(memory_bytes=1 << 40), dataclasses.replace(CAPACITY, machine_memory_bytes=0))


async def test_exec_life(host: Host) -> None:
    container = await host.create("stubborn")
    with pytest.raises(ConflictError, match="is not running"):
        container.execs.create(execution_pb2.ExecSpec(args=["echo"]))
    await container.start()
    process = container.execs.create(execution_pb2.ExecSpec(args=["mixed"]))
    subscription = process.hub.subscribe()
    await container.execs.start(process)
    with pytest.raises(ConflictError, match="already run"):
        await container.execs.start(process)
    assert [(chunk.stream, chunk.data) async for chunk in subscription] == [(1, b"out\n"), (2, b"err\n")]
    await process.ended.wait()
    assert process.exit_code == 3
    missing = container.execs.create(execution_pb2.ExecSpec(args=["nosuch"]))
    with pytest.raises(LaunchError, match="OCI runtime exec failed"):
        await container.execs.start(missing)
    assert missing.exit_code == 127
    lasting = container.execs.create(execution_pb2.ExecSpec(args=["stubborn"]))
    await container.execs.start(lasting)
    await container.kill(9)
    await lasting.ended.wait()
    assert lasting.exit_code == 137


async def test_a_slow_client_slows_the_container_and_a_vanished_one_does_not(host: Host) -> None:
    container = await host.create("flood", "400", log=types_pb2.LogConfig(max_file_bytes=1 << 20, max_files=2))
    subscription = container.output.subscribe()
    await container.start()
    ending = container.next_exit()
    await stands_still(container, subscription)
    assert not ending.done()
    subscription.close()
    async with asyncio.timeout(PATIENCE_S):
        assert (await ending).exit_code == 0
    assert sum(path.stat().st_size for path in container.log.directory.iterdir()) < 3 << 20


async def test_a_killed_container_does_not_wait_for_a_slow_client(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending_module, "_KILL_S", 3600.0)  # nobody cuts its power instead
    container = await host.create("flood", "400")
    subscription = container.output.subscribe()
    await container.start()
    await stands_still(container, subscription)
    async with asyncio.timeout(PATIENCE_S):
        await container.remove(force=True)
    subscription.close()


# --- the port layer ends and another takes over


async def test_a_running_container_goes_on_without_the_port_layer(host: Host) -> None:
    container = await host.create("cat", name="lasting", open_stdin=True)
    await container.start()
    await container.stdin_write(b"before\n")
    await host.manager.close()
    init = agent_of(container).processes["init"]
    init.stdin.put_nowait(b"meanwhile\n")
    await host.restart()
    again = host.manager.get("lasting")
    assert again.state.status == states.RUNNING
    ending = again.next_exit()
    await again.stdin_write(b"after\n")
    await again.stdin_close()
    async with asyncio.timeout(PATIENCE_S):
        assert (await ending).exit_code == 0
    assert await output_of(again) == b"before\nmeanwhile\nafter\n"


async def test_an_exit_during_the_outage_arrives(host: Host) -> None:
    container = await host.create("sleep", name="box1", auto_remove=False)
    await container.start()
    await host.manager.close()
    agent_of(container).processes["init"].signals.put_nowait(15)
    await host.restart()
    again = host.manager.get("box1")
    if again.state.status != states.EXITED:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.shield(again.next_exit())
    assert again.state.exit_code == 143
    async with asyncio.timeout(PATIENCE_S):
        await again.settled.wait()


async def test_a_vm_that_ended_during_the_outage(host: Host) -> None:
    container = await host.create("stubborn", name="box1")
    await container.start()
    await host.manager.close()
    await container.machine.power_off()
    await host.restart()
    again = host.manager.get("box1")
    async with asyncio.timeout(PATIENCE_S):
        if again.state.status != states.EXITED:
            await asyncio.shield(again.next_exit())
    assert again.state.exit_code == 137
    assert await again.start() is True
    await again.remove(force=True)


async def test_a_paused_container_stays_paused(host: Host) -> None:
    container = await host.create("sleep", name="box1")
    await container.start()
    await container.pause()
    await host.restart()
    again = host.manager.get("box1")
    assert again.state.status == states.PAUSED
    await again.resume()
    await again.stop(60, 0)
    assert again.state.exit_code == 143


async def test_half_done_starts_and_removals_are_finished(host: Host) -> None:
    starting, removing = await host.create("echo", name="starting"), await host.create("echo", name="removing")
    for container, status in ((starting, states.STARTING), (removing, states.REMOVING)):
        container.state.status = status
        await container.machine.write_record(container.record.SerializeToString())
    await starting.machine.power_on()
    await host.restart()
    assert host.manager.get("starting").state.status == states.CREATED
    await until(lambda: removing.id not in host.driver.machines)
    assert await run_to_end(host.manager.get("starting")) == 0


async def test_a_broken_record_harms_nobody_else(host: Host) -> None:
    broken, fine = await host.create("echo", name="broken"), await host.create("echo", name="fine")
    await broken.machine.write_record(b"\xff\xff")
    await host.restart()
    assert [one.id for one in host.manager.containers()] == [fine.id]
    assert broken.id in host.driver.machines


async def test_a_silent_guest_is_killed_all_the_same(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are not affected, and the end is that of a process that was killed."""
    monkeypatch.setattr(ending_module, "_KILL_S", 0.05)
    silent, other = await host.create("stubborn"), await host.create("stubborn")
    await asyncio.gather(silent.start(), other.start())
    agent_of(silent).mute.update({"Signal", "Stop", "Exec", "Hello"})
    ending = silent.next_exit()
    async with asyncio.timeout(PATIENCE_S):
        await silent.remove(force=True)
        assert (await ending).exit_code == 137
    assert other.state.status == states.RUNNING
    assert silent.id not in host.driver.machines


async def test_a_guest_that_hangs_in_its_boot_can_be_removed(host: Host) -> None:
    container = await host.create("stubborn")
    machine = container.machine
    assert isinstance(machine, FakeMachine)
    machine.mute = {"Hello"}
    starting = asyncio.create_task(container.start())
    await until(lambda: machine.agent is not None and "Hello" in machine.agent.requests)
    async with asyncio.timeout(PATIENCE_S):
        await container.remove(force=True)
        with pytest.raises(UnavailableError):
            await starting
    assert not host.driver.machines


async def test_a_machine_that_does_not_answer_keeps_nobody_waiting(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new port layer takes it for running, and the others up at once."""
    monkeypatch.setattr(container_module, "_RECOVER_S", 0.05)
    hung = [await host.create("stubborn") for _ in range(3)]
    well = await host.create("stubborn")
    await asyncio.gather(*(one.start() for one in (*hung, well)))

    async def never() -> PowerState:
        await asyncio.Event().wait()
        raise AssertionError

    for one in hung:
        monkeypatch.setattr(one.machine, "power_state", never)
    async with asyncio.timeout(PATIENCE_S):
        manager = await host.restart()
        assert manager.get(well.id).state.status == states.RUNNING
        for one in hung:
            await manager.get(one.id).remove(force=True)
    assert list(host.driver.machines) == [well.id]


async def test_one_whose_end_cannot_be_recorded_does_not_keep_who_starts_it(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hypervisor may be away for hours."""
    container = await host.create("sleep")
    await container.start()
    write_record = FakeMachine.write_record

    async def refused(*_: object) -> None:
        raise DriverError("vCenter does not answer")

    monkeypatch.setattr(FakeMachine, "write_record", refused)
    await container.kill(9)
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(UnavailableError, match="how it ended last cannot be recorded yet: vCenter does not answer"):
            await container.start()
    assert container.state.status == states.EXITED
    monkeypatch.setattr(FakeMachine, "write_record", write_record)
    async with asyncio.timeout(PATIENCE_S):
        await container.settled.wait()
    assert await container.start() is True
    await container.remove(force=True)
