"""Real machines under emulation. Most need no more than the kernel's first moments; the last ones ask the agent."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from qemu_machines import BOOT_S, PATIENCE_S, all_ended, make_spec

from portlayer.drivers.base import Machine, MachineSpec, PowerState
from portlayer.drivers.qemu import LocalDatastore, QemuDriver, command, instance
from portlayer.drivers.qemu import machine as machines
from portlayer.errors import ConflictError, DriverError

pytestmark = pytest.mark.vm


async def running(driver: QemuDriver, spec: MachineSpec | None = None) -> Machine:
    machine = await driver.create(spec or make_spec(), b"record")
    await machine.power_on()
    return machine


async def test_power(driver: QemuDriver) -> None:
    machine = await driver.create(make_spec(), b"record")
    assert await machine.power_state() is PowerState.OFF
    await machine.wait_off()
    await machine.power_off()
    await machine.power_on()
    await machine.power_on()
    assert await machine.power_state() is PowerState.RUNNING
    await machine.power_off()
    assert await machine.power_state() is PowerState.OFF
    await machine.power_on()
    assert await machine.power_state() is PowerState.RUNNING


async def test_pause(driver: QemuDriver) -> None:
    machine = await running(driver)
    await machine.pause()
    await machine.pause()
    assert await machine.power_state() is PowerState.PAUSED
    await machine.resume()
    assert await machine.power_state() is PowerState.RUNNING
    await machine.power_off()
    with pytest.raises(ConflictError):
        await machine.pause()


async def test_found_again_after_a_restart(driver: QemuDriver, state_dir: Path, guest_image: Path) -> None:
    before = await running(driver)
    await before.pause()
    await driver.close()
    again = QemuDriver(state_dir, guest_image, accelerator="tcg")
    await again.open()
    try:
        (machine,) = await again.list()
        assert machine.spec == make_spec()
        assert await machine.read_record() == b"record"
        assert await machine.power_state() is PowerState.PAUSED
        await machine.resume()
        assert await machine.power_state() is PowerState.RUNNING
    finally:
        await again.close()
    assert await before.power_state() is PowerState.RUNNING


async def test_all_waiters_see_the_end(driver: QemuDriver) -> None:
    machine = await running(driver)
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(machine.wait_off())
        pid = int((machine.directory / machines.PROCESS / command.PID_FILE).read_text())
        os.kill(pid, signal.SIGKILL)
    assert await machine.power_state() is PowerState.OFF
    await machine.power_on()  # in spite of the pid file that is left
    assert await machine.power_state() is PowerState.RUNNING


async def test_destroy_running_machine_leaves_nothing(driver: QemuDriver, state_dir: Path) -> None:
    machine = await running(driver)
    await driver.destroy(machine)
    await driver.destroy(machine)
    assert not machine.directory.exists()
    await all_ended(state_dir)
    assert await driver.list() == []
    with pytest.raises(DriverError):
        await machine.open_channel()


async def test_many_share_an_image_disk(driver: QemuDriver) -> None:
    made = [await driver.create(make_spec(number), b"") for number in (1, 2, 3)]
    async with asyncio.TaskGroup() as group:
        for machine in made:
            group.create_task(machine.power_on())
    assert [await machine.power_state() for machine in made] == [PowerState.RUNNING] * 3


async def test_what_qemu_says_is_quoted(driver: QemuDriver, state_dir: Path) -> None:
    machine = await driver.create(make_spec(cpus=100_000), b"")
    with pytest.raises(DriverError, match="CPUs"):
        await machine.power_on()
    assert await machine.power_state() is PowerState.OFF
    await all_ended(state_dir)


async def test_missing_image_disk(driver: QemuDriver, state_dir: Path) -> None:
    machine = await driver.create(make_spec(), b"")
    await LocalDatastore(state_dir).remove_image_disk("image.squashfs")
    with pytest.raises(DriverError, match=r"image\.squashfs"):
        await machine.power_on()


async def test_cancelled_calls_leave_nothing_half_done(driver: QemuDriver) -> None:
    creating = asyncio.create_task(driver.create(make_spec(), b""))
    await asyncio.sleep(0)
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert await driver.list() == []
    machine = await driver.create(make_spec(2), b"")
    starting = asyncio.create_task(machine.power_on())
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert await machine.power_state() is PowerState.RUNNING


async def test_console_is_bounded_without_anyone_looking(driver: QemuDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything beyond is dropped, the guest goes on, and the run before can still be read."""
    agent = pytest.importorskip("portlayer.agent")
    monkeypatch.setattr(instance, "CONSOLE_LIMIT_BYTES", 7)
    machine = await running(driver)
    assert machine.console_log is not None
    console = Path(machine.console_log)
    async with asyncio.timeout(BOOT_S), agent.AgentClient(machine.open_channel) as client:
        await client.hello(timeout_s=BOOT_S)
    async with asyncio.timeout(PATIENCE_S):
        while console.stat().st_size < 7:
            await asyncio.sleep(0.01)
    assert console.stat().st_size == 7
    first = console.read_bytes()
    await machine.power_off()
    await machine.power_on()
    assert (machine.directory / machines.OLD_CONSOLE_LOG).read_bytes() == first


async def test_info(driver: QemuDriver) -> None:
    info = await driver.info()
    assert info["Accelerator"] == "tcg"
    assert info["Machine type"] == "pc-q35-7.2"
    assert info["Guest image"].startswith("sha256:")


async def test_agent_answers_and_powers_off(driver: QemuDriver) -> None:
    agent = pytest.importorskip("portlayer.agent")
    machine = await running(driver)
    async with asyncio.timeout(BOOT_S), agent.AgentClient(machine.open_channel) as client:
        hello = await client.hello(timeout_s=BOOT_S)
        assert hello.protocol == 1
        await client.power_off()
        await machine.wait_off()
    assert await machine.power_state() is PowerState.OFF


async def test_agent_answers_after_a_restart_of_the_host_side(driver: QemuDriver) -> None:
    agent = pytest.importorskip("portlayer.agent")
    machine = await running(driver)
    boot_ids = []
    for _ in range(2):
        async with asyncio.timeout(BOOT_S), agent.AgentClient(machine.open_channel) as client:
            boot_ids.append((await client.hello(timeout_s=BOOT_S)).boot_id)
    assert boot_ids[0] == boot_ids[1]
