"""What a container uses, by its guest and by the hypervisor: who is believed in what, and when one is silent."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from portlayer.agent import AgentError
from portlayer.drivers.base import CardUsage, MachineUsage
from portlayer.errors import DriverError
from portlayer.execution import Container, states, usage
from portlayer.v1 import execution_pb2 as pb

if TYPE_CHECKING:
    from conftest import Host

COUNTED = MachineUsage(
    cpu_ns=5_000_000_000,
    memory_bytes=300 << 20,
    active_memory_bytes=20 << 20,
    read_bytes=7,
    written_bytes=8,
    cards=(CardUsage(1, 2, 3, 4, 5, 6), CardUsage(received_bytes=10)),
)
NETWORKS = [
    pb.NetworkStats(
        interface="eth0",
        received_bytes=1,
        sent_bytes=2,
        received_packets=3,
        sent_packets=4,
        received_dropped=5,
        sent_dropped=6,
    ),
    pb.NetworkStats(interface="eth1", received_bytes=10),
]


@pytest.fixture(autouse=True)
def long_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who answers is heard on a busy machine too; short it is where somebody is silent."""
    monkeypatch.setattr(usage, "PATIENCE_S", 60.0)


async def running(host: Host, counted: MachineUsage | None) -> Container:
    container = await host.create("sleep")
    await container.start()
    host.driver.machines[container.id].counted = counted
    return container


async def test_a_guest_is_believed_in_what_it_knows(host: Host) -> None:
    container = await running(host, COUNTED)
    sample = (await container.stats()).sample()
    assert (sample.memory_usage_bytes, sample.memory_limit_bytes, sample.pids) == (4096, 1 << 20, 1)
    assert (sample.cpu_total_ns, list(sample.block)) == (0, [])
    assert list(sample.networks) == NETWORKS
    assert sample.memory_stat == {"host_memory": 300 << 20, "host_active_memory": 20 << 20}
    await container.remove(force=True)


async def test_without_a_hypervisor_that_counts_the_guest_is_enough(host: Host) -> None:
    container = await running(host, None)
    host.driver.machines[container.id].fail_next["usage"] = DriverError("no")
    for _ in range(2):
        sample = (await container.stats()).sample()
        assert (sample.memory_usage_bytes, list(sample.networks), dict(sample.memory_stat)) == (4096, [], {})
    await container.remove(force=True)


def assert_the_hypervisors(sample: pb.StreamStatsResponse, container: Container) -> None:
    assert (sample.cpu_total_ns, sample.memory_usage_bytes) == (5_000_000_000, 300 << 20)
    spec = container.machine.spec
    assert (sample.memory_limit_bytes, sample.online_cpus) == (spec.memory_bytes, spec.cpus)
    # What docker's client divides by: the time that passed, for each processor.
    assert sample.system_cpu_ns == sample.time_unix_ns * spec.cpus
    assert list(sample.block) == [pb.BlockDeviceStats(read_bytes=7, write_bytes=8)]
    assert list(sample.networks) == NETWORKS
    assert sample.pids == 0


async def test_a_guest_that_hangs_has_the_hypervisors_figures(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "PATIENCE_S", 0.05)
    container = await running(host, COUNTED)
    agent = host.driver.machines[container.id].agent
    assert agent is not None
    agent.mute.add("Stats")
    assert_the_hypervisors((await container.stats()).sample(), container)
    await container.remove(force=True)


async def test_a_paused_container_has_the_hypervisors_figures(host: Host) -> None:
    container = await running(host, COUNTED)
    await container.pause()
    assert container.state.status == states.PAUSED
    assert_the_hypervisors((await container.stats()).sample(), container)
    host.driver.machines[container.id].counted = None
    assert not (await container.stats()).known
    await container.remove(force=True)


async def test_a_guest_that_hangs_is_an_error_where_nobody_else_knows(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = await running(host, None)
    monkeypatch.setattr(usage, "GUEST_S", 0.05)
    agent = host.driver.machines[container.id].agent
    assert agent is not None
    agent.mute.add("Stats")
    with pytest.raises(AgentError):
        await container.stats()
    await container.remove(force=True)


async def test_a_hypervisor_that_does_not_answer_keeps_nobody_waiting(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "PATIENCE_S", 0.05)
    container = await running(host, COUNTED)

    async def never() -> MachineUsage | None:
        await asyncio.Event().wait()
        return None

    monkeypatch.setattr(host.driver.machines[container.id], "usage", never)
    found = await container.stats()
    assert found.guest is not None
    assert found.machine is None
    await container.remove(force=True)


async def test_what_does_not_run_uses_nothing(host: Host) -> None:
    container = await host.create("sleep")
    host.driver.machines[container.id].counted = COUNTED
    found = await container.stats()
    assert not found.known
    assert found.sample().memory_usage_bytes == 0
    await container.remove(force=True)
