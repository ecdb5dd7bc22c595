"""What ESXi counts of VMs: in which units, how samples become counters, and how few questions that takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyVmomi import vim, vmodl
from vsphere_front import Front
from vsphere_machines import Bench
from vsphere_trouble import raise_fault
from vsphere_waiting import until

from portlayer.drivers.base import CardUsage, MachineUsage
from portlayer.drivers.vsphere import performance
from portlayer.drivers.vsphere.performance import INTERVAL_S, KEPT_S, MEASURES, Performance
from portlayer.errors import DriverError, NotFoundError

Perf = vim.PerformanceManager
IDS = {measure.name: number for number, measure in enumerate(MEASURES, 100)}
KIB = 1024
MINUTE = 60


@pytest.fixture
async def bench(front: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    async with Bench.open(front, tmp_path, monkeypatch) as bench:
        yield bench


class Manager:
    """Of performance; `query` is what it is asked."""

    def __init__(self, query: Any) -> None:
        self.QueryPerf = query


class Hosts:
    """Stands for a session with a vCenter whose hosts say what a test makes up; and for the clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.on = True
        self.queries: list[list[Any]] = []
        self.samples: list[tuple[str, dict[str, dict[str, int]]]] = []
        self.units = {measure.name: measure.unit for measure in MEASURES}
        self.failing: dict[str, Exception] = {}
        self.held: asyncio.Event | None = None
        self.holds = asyncio.Event()  # set while a question is held
        self.content = SimpleNamespace(perfManager=Manager(self._query))
        self.performance = Performance(self, lambda vm: self.on, lambda: self.now)  # type: ignore[arg-type]

    async def read(self, objects: list[Any], paths: list[str]) -> Any:
        assert paths == ["perfCounter"]
        return {objects[0]: {"perfCounter": [_counter(name, unit) for name, unit in self.units.items()]}}

    async def call(self, method: Any, *args: Any, what: str) -> Any:
        if self.held is not None:
            self.holds.set()
            await self.held.wait()
        return method(*args)

    def _query(self, specs: list[Any]) -> list[Any]:
        self.queries.append([spec.entity._moId for spec in specs])
        for spec in specs:
            if spec.entity._moId in self.failing:
                raise self.failing[spec.entity._moId]
            assert (spec.intervalId, spec.format) == (INTERVAL_S, "csv")
        return [self._answer(spec) for spec in specs]

    def _answer(self, spec: Any) -> Any:
        """Newest first, which is what vcsim does; vCenter does not say that it will not."""
        asked = {(one.counterId, one.instance) for one in spec.metricId}
        assert asked == {(IDS[one.name], one.instance) for one in MEASURES if self.units[one.name] == one.unit}
        taken = self.samples[::-1]
        series: dict[tuple[int, str], list[int]] = {}
        for _, values in taken:
            for name, by_instance in values.items():
                for instance, value in by_instance.items():
                    series.setdefault((IDS[name], instance), []).append(value)
        return Perf.EntityMetricCSV(
            entity=spec.entity,
            sampleInfoCSV=",".join(f"{INTERVAL_S},2026-01-01T{moment}Z" for moment, _ in taken),
            value=[
                Perf.MetricSeriesCSV(
                    id=Perf.MetricId(counterId=number, instance=instance), value=",".join(map(str, values))
                )
                for (number, instance), values in series.items()
            ],
        )

    async def usage(self, vm: str = "vm-1") -> MachineUsage | None:
        return await self.performance.usage(vim.VirtualMachine(vm))

    async def answered(self) -> None:
        """Returns when nothing is asked in the background any more."""
        if (asking := self.performance._asking) is not None:
            await asking


def _counter(name: str, unit: str) -> Any:
    group, one, rollup = name.split(".")
    described = {"label": "", "summary": ""}
    return Perf.CounterInfo(
        key=IDS[name],
        groupInfo=vim.ElementDescription(key=group, **described),
        nameInfo=vim.ElementDescription(key=one, **described),
        unitInfo=vim.ElementDescription(key=unit, **described),
        rollupType=rollup,
        statsType="rate",
    )


def sample(**changed: dict[str, int]) -> dict[str, dict[str, int]]:
    """In vSphere's units, by the first two parts of names, with _ between them."""
    values: dict[str, dict[str, int]] = {
        "cpu_used": {"": 10_000},
        "mem_consumed": {"": 2048},
        "mem_active": {"": 512},
        "virtualDisk_read": {"scsi0:0": 1, "scsi0:1": 2},
        "virtualDisk_write": {"scsi0:0": 0, "scsi0:1": 4},
        "net_bytesRx": {"": 30, "4001": 10, "4000": 20},
        "net_bytesTx": {"": 7, "4001": 7, "4000": 0},
        "net_packetsRx": {"": 9, "4001": 4, "4000": 5},
        "net_packetsTx": {"": 1, "4001": 1, "4000": 0},
        "net_droppedRx": {"": 2, "4001": 0, "4000": 2},
        "net_droppedTx": {"": 0, "4001": 0, "4000": 0},
    }
    names = {measure.name.rpartition(".")[0].replace(".", "_"): measure.name for measure in MEASURES}
    return {names[name]: value for name, value in (values | changed).items()}


WHOLE = MachineUsage(
    cpu_ns=10_000_000_000,
    memory_bytes=2048 * KIB,
    active_memory_bytes=512 * KIB,
    read_bytes=3 * KIB * 20,
    written_bytes=4 * KIB * 20,
    cards=(CardUsage(20 * KIB * 20, 0, 5, 0, 2, 0), CardUsage(10 * KIB * 20, 7 * KIB * 20, 4, 1, 0, 0)),
)


async def test_units_are_ours_and_cards_are_in_the_order_of_networks() -> None:
    hosts = Hosts()
    hosts.samples = [("00:00:20", sample())]
    assert await hosts.usage() is not None
    hosts.now += INTERVAL_S - 1  # so that it is not asked again
    almost = await hosts.usage()
    hosts.samples = []
    hosts.now += 1
    assert await hosts.usage() == WHOLE
    assert almost is not None
    assert almost.cpu_ns == 9_500_000_000


async def test_counters_grow_evenly_never_go_back_and_add_up() -> None:
    hosts = Hosts()
    seen = []
    for number in range(1, 4):
        hosts.samples.append((f"00:0{number}:00", sample(cpu_used={"": number * 1000})))
        for _ in range(INTERVAL_S):
            usage = await hosts.usage()
            await hosts.answered()
            assert usage is not None
            seen.append(usage.cpu_ns)
            hosts.now += 1
    hosts.now += INTERVAL_S
    last = await hosts.usage()
    assert last is not None
    assert seen == sorted(seen)
    assert len(set(seen)) > 50
    assert last.cpu_ns == (1 + 2 + 3) * 1_000_000_000
    assert len(hosts.queries) == 3


async def test_what_was_before_the_first_question_counts_at_once() -> None:
    hosts = Hosts()
    hosts.samples = [(f"00:{minute:02}:00", sample()) for minute in range(60)]
    usage = await hosts.usage()
    assert usage is not None
    assert usage.cpu_ns == 59 * WHOLE.cpu_ns
    assert usage.memory_bytes == WHOLE.memory_bytes


async def test_what_was_not_measured_is_nothing() -> None:
    hosts = Hosts()
    hosts.samples = [("00:00:20", sample(cpu_used={"": -1}, virtualDisk_read={"scsi0:0": -1}))]
    await hosts.usage()
    hosts.now += INTERVAL_S
    usage = await hosts.usage()
    assert usage is not None
    assert (usage.cpu_ns, usage.read_bytes, usage.written_bytes) == (0, 0, WHOLE.written_bytes)


async def test_a_counter_in_another_unit_is_no_counter(caplog: pytest.LogCaptureFixture) -> None:
    hosts = Hosts()
    name = performance.CPU.name
    hosts.units[name] = "second"
    hosts.samples = [("00:00:20", {key: value for key, value in sample().items() if key != name})]
    await hosts.usage()
    hosts.now += INTERVAL_S
    usage = await hosts.usage()
    assert usage is not None
    assert (usage.cpu_ns, usage.memory_bytes) == (0, WHOLE.memory_bytes)
    assert name in caplog.text


@pytest.mark.slow
async def test_all_who_ask_are_one_question_in_each_interval() -> None:
    hosts = Hosts()
    hosts.samples = [("00:00:20", sample())]
    vms = [f"vm-{number}" for number in range(250)]
    assert all(await asyncio.gather(*(hosts.usage(vm) for vm in vms)))
    assert sorted(vm for query in hosts.queries for vm in query) == sorted(vms)
    assert max(map(len, hosts.queries)) <= performance.BATCH
    hosts.queries.clear()
    for _ in range(INTERVAL_S - 1):
        hosts.now += 1
        await asyncio.gather(*(hosts.usage(vm) for vm in vms))
    assert hosts.queries == []
    hosts.now += 1
    await asyncio.gather(*(hosts.usage(vm) for vm in vms))
    await hosts.answered()
    assert sorted(map(len, hosts.queries)) == [50, 100, 100]


async def test_nobody_is_asked_for_who_is_not_asked_after() -> None:
    hosts = Hosts()
    hosts.samples = [("00:00:20", sample())]
    await hosts.usage("vm-1")
    hosts.now += MINUTE
    await hosts.usage("vm-2")
    assert hosts.queries == [["vm-1"], ["vm-2"]]
    hosts.now += KEPT_S
    await hosts.usage("vm-2")
    await hosts.answered()
    assert list(hosts.performance._accounts) == ["vm-2"]


async def test_a_slow_vcenter_keeps_those_waiting_only_who_know_nothing() -> None:
    hosts = Hosts()
    hosts.samples = [("00:00:20", sample())]
    await hosts.usage()
    hosts.held = asyncio.Event()
    hosts.now += INTERVAL_S
    assert await hosts.usage() == WHOLE
    newcomer = asyncio.create_task(hosts.usage("vm-2"))
    await hosts.holds.wait()
    assert not newcomer.done()
    hosts.held.set()
    assert await newcomer is not None
    assert hosts.queries == [["vm-1"], ["vm-1"], ["vm-2"]]


async def test_a_vm_that_is_gone_is_nothing_to_the_others() -> None:
    hosts = Hosts()
    hosts.samples = [("00:00:20", sample())]
    hosts.failing["vm-2"] = NotFoundError("gone")
    first = asyncio.gather(*(hosts.usage(vm) for vm in ("vm-1", "vm-2", "vm-3")))
    assert [usage is not None for usage in await first] == [True, False, True]


async def test_a_failure_is_not_repeated_at_once_and_passes() -> None:
    hosts = Hosts()
    hosts.samples = [("00:00:20", sample())]
    hosts.failing["vm-1"] = DriverError("no")
    for _ in range(3):
        assert await hosts.usage() is None
    assert len(hosts.queries) == 1
    hosts.failing.clear()
    hosts.now += INTERVAL_S
    await hosts.usage()
    await hosts.answered()
    assert await hosts.usage() is not None


async def test_a_suspended_vm_is_not_asked_for_and_takes_no_memory() -> None:
    hosts = Hosts()
    hosts.on = False
    assert await hosts.usage() is None
    assert hosts.queries == []
    hosts.on = True
    hosts.samples = [("00:00:20", sample())]
    await hosts.usage()
    hosts.on = False
    hosts.now += INTERVAL_S
    usage = await hosts.usage()
    assert usage is not None
    assert (usage.cpu_ns, usage.memory_bytes, usage.active_memory_bytes) == (WHOLE.cpu_ns, 0, 0)
    assert len(hosts.queries) == 1


def test_an_answer_that_makes_no_sense_is_no_sample() -> None:
    counters = {1: performance.CPU}
    series = [
        Perf.MetricSeriesCSV(id=Perf.MetricId(counterId=number, instance=""), value="1,x,3,4") for number in (1, 2)
    ]
    answer = Perf.EntityMetricCSV(entity=vim.VirtualMachine("vm-1"), value=series)
    assert performance.samples(answer, counters) == []
    answer.sampleInfoCSV = "20,yesterday,20,2026-01-01T00:00:40Z,x,2026-01-01T00:00:20,20,2026-01-01T00:00:20Z"
    found = performance.samples(answer, counters)
    assert [sample.amounts[performance.CPU, ""] for sample in found] == [4_000_000, 0]


# --- on the simulator


async def test_the_simulators_vms_are_asked_for_together(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has every counter, in its unit; what they say is made up, and is for all cards and disks at once."""
    machines = [await bench.machine(running=True) for _ in range(3)]
    await until(lambda: all(bench.driver.around.vms.is_on(machine.vm) for machine in machines))
    performance = bench.driver.around.performance
    monkeypatch.setattr(performance, "_clock", lambda: 1000.0)  # no other sample is due meanwhile
    bench.front.clear()
    found = await asyncio.gather(*(machine.usage() for machine in machines))
    known = performance._counters
    assert known is not None
    assert set(known.values()) == set(MEASURES)
    for usage in found:
        assert usage is not None
        assert usage.memory_bytes > 0
        assert usage.cpu_ns > 0
    assert 1 <= bench.front.calls["QueryPerf"] <= 2
    assert [usage is not None for usage in await asyncio.gather(*(machine.usage() for machine in machines))] == [
        True
    ] * 3
    assert bench.front.calls["QueryPerf"] <= 2


async def test_a_vcenter_that_does_not_say_does_no_harm(bench: Bench) -> None:
    machine = await bench.machine(running=True)
    bench.front.inject("QueryPerf", raise_fault(vmodl.fault.InvalidArgument(invalidProperty="entity")), times=5)
    assert await machine.usage() is None
    off = await bench.machine()
    assert await off.usage() is None
