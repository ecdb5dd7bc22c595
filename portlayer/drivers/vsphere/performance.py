"""What ESXi counts of VMs, from vCenter's PerformanceManager, for those who ask and while they ask.

A host takes a sample of each VM every 20 seconds and keeps it for an hour. All VMs that somebody asks for are queried
together, once per sample; nobody waits for that but who asks for a VM the first time.

Samples tell what happened in 20 seconds, and readers want counters that move: a sample's amount is added little by
little over the 20 seconds after it came. So counters lag by that much, never go back, and add up to the truth.

Facts: vSphere Web Services API, PerformanceManager. Real-time samples are those of `intervalId` 20; a sample at
`startTime` is not among the answers; -1 stands for what was not measured; instance "*" is all of them, "" the sum. A
network card's instance is its device key, a disk's is "scsi0:1". vSphere's kilobytes have 1024 bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pyVmomi import vim

from portlayer.drivers.base import CardUsage, MachineUsage
from portlayer.drivers.vsphere.session import Session
from portlayer.errors import NotFoundError, PortLayerError

# Between two samples of a host; seconds.
INTERVAL_S: Final = 20
# As long as a host keeps them.
KEPT_S: Final = 3600
# Who has not asked for so long does not ask any more.
_WANTED_S = 2 * INTERVAL_S
# VMs of one query: an answer of some hundred kilobytes, or of a megabyte the first time.
BATCH: Final = 100
_KIB = 1024
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measure:
    """A counter of vSphere: its name, which instances are asked for, and what one of its unit is here.

    What is `counted` says how much there was, in the sample or in each of its seconds; the rest says how it is.
    """

    name: str
    instance: str
    unit: str
    scale: int
    counted: bool = True
    per_second: bool = False


def _rate(name: str) -> Measure:
    return Measure(name, "*", "kiloBytesPerSecond", _KIB, per_second=True)


def _number(name: str) -> Measure:
    return Measure(name, "*", "number", 1)


CPU = Measure("cpu.used.summation", "", "millisecond", 1_000_000)
MEMORY = Measure("mem.consumed.average", "", "kiloBytes", _KIB, counted=False)
ACTIVE = Measure("mem.active.average", "", "kiloBytes", _KIB, counted=False)
READ, WRITTEN = _rate("virtualDisk.read.average"), _rate("virtualDisk.write.average")
# In the order of CardUsage.
CARD = (
    _rate("net.bytesRx.average"),
    _rate("net.bytesTx.average"),
    _number("net.packetsRx.summation"),
    _number("net.packetsTx.summation"),
    _number("net.droppedRx.summation"),
    _number("net.droppedTx.summation"),
)
MEASURES: Final = (CPU, MEMORY, ACTIVE, READ, WRITTEN, *CARD)


class _Account:
    """Of one VM."""

    def __init__(self, vm: Any) -> None:
        self.vm = vm
        self.asked = 0.0
        self.queried: float | None = None
        self.newest: datetime | None = None
        self._before: Counter[tuple[Measure, str]] = Counter()
        self._last: Counter[tuple[Measure, str]] = Counter()
        self._since = 0.0
        self._levels: dict[Measure, int] = {}

    def is_due(self, now: float) -> bool:
        return now - self.asked <= _WANTED_S and (self.queried is None or now - self.queried >= INTERVAL_S)

    def add(self, samples: Sequence[_Sample], now: float) -> None:
        """In the order of time; the last one counts from now on, the others at once."""
        for sample in samples:
            if self.newest is not None and sample.taken <= self.newest:
                continue
            self.newest = sample.taken
            self._before.update(self._last)  # which, unlike +, keeps what is 0
            self._last = Counter({key: amount for key, amount in sample.amounts.items() if key[0].counted})
            self._levels = {key[0]: amount for key, amount in sample.amounts.items() if not key[0].counted}
            self._since = now

    def usage(self, now: float, *, running: bool) -> MachineUsage | None:
        if self.newest is None:
            return None
        part = min(1.0, (now - self._since) / INTERVAL_S)
        played = {key: self._before[key] + int(self._last[key] * part) for key in {*self._before, *self._last}}

        def total(measure: Measure) -> int:
            parts = {instance: amount for (of, instance), amount in played.items() if of is measure}
            return sum(amount for instance, amount in parts.items() if instance or len(parts) == 1)

        return MachineUsage(
            cpu_ns=total(CPU),
            memory_bytes=self._levels.get(MEMORY, 0) if running else 0,
            active_memory_bytes=self._levels.get(ACTIVE, 0) if running else 0,
            read_bytes=total(READ),
            written_bytes=total(WRITTEN),
            cards=tuple(
                CardUsage(*(played.get((measure, card), 0) for measure in CARD)) for card in _cards(played.keys())
            ),
        )


def _cards(keys: Any) -> list[str]:
    """Cards in the order of their device keys, which is that of the networks. Their sum, where there is no more."""
    found = {instance for measure, instance in keys if measure in CARD}
    return sorted(filter(str.isdigit, found), key=int) or sorted(found)[:1]


@dataclass(frozen=True)
class _Sample:
    taken: datetime
    amounts: Mapping[tuple[Measure, str], int]


class Performance:
    """Of the VMs of one session. `runs` says whether a VM is on: others have no samples. `clock` counts seconds."""

    def __init__(
        self, session: Session, runs: Callable[[Any], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._session = session
        self._runs = runs
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._counters: dict[int, Measure] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def usage(self, vm: Any) -> MachineUsage | None:
        """None as long as vSphere has no sample, or does not say."""
        now = self._clock()
        account = self._accounts.setdefault(vm._moId, _Account(vm))
        account.asked = now
        running = self._runs(vm)
        while running and account.is_due(now) and not self._closed:
            if self._asking is None:
                self._asking = asyncio.create_task(self._ask())
            if account.queried is not None:
                break
            await asyncio.wait([self._asking])
        return account.usage(self._clock(), running=running)

    async def _ask(self) -> None:
        try:
            while due := self._due():
                for account in due:
                    account.queried = self._clock()
                for first in range(0, len(due), BATCH):
                    await self._query(due[first : first + BATCH])
        except PortLayerError as error:
            _log.info("the usage of VMs is not known: %s", error)
        finally:
            self._asking = None

    def _due(self) -> list[_Account]:
        now = self._clock()
        self._accounts = {key: one for key, one in self._accounts.items() if now - one.asked <= KEPT_S}
        return [one for one in self._accounts.values() if one.is_due(now) and self._runs(one.vm)]

    async def _query(self, accounts: list[_Account]) -> None:
        counters = self._counters or await self._look_up()
        ids = [vim.PerformanceManager.MetricId(counterId=id_, instance=one.instance) for id_, one in counters.items()]
        specs = []
        for account in accounts:
            spec = vim.PerformanceManager.QuerySpec(
                entity=account.vm, metricId=ids, intervalId=INTERVAL_S, format="csv", startTime=account.newest
            )
            if account.newest is None:
                spec.maxSample = KEPT_S // INTERVAL_S
            specs.append(spec)
        query = self._session.content.perfManager.QueryPerf
        try:
            answers = await self._session.call(query, specs, what="asking for the usage of VMs")
        except NotFoundError:  # one that has just gone is nothing to the others
            if len(accounts) > 1:
                for account in accounts:
                    await self._query([account])
            return
        by_vm = {answer.entity._moId: answer for answer in answers or ()}
        for account in accounts:
            if (answer := by_vm.get(account.vm._moId)) is not None:
                account.add(samples(answer, counters), self._clock())

    async def _look_up(self) -> dict[int, Measure]:
        """The ids that this vSphere has for the measures; once, since they stay while it runs.

        One in another unit than it should be is as if it were not there.
        """
        manager = self._session.content.perfManager
        found = (await self._session.read([manager], ["perfCounter"])).get(manager, {}).get("perfCounter", ())
        wanted = {(one.name, one.unit): one for one in MEASURES}
        known = {
            int(one.key): (f"{one.groupInfo.key}.{one.nameInfo.key}.{one.rollupType}", str(one.unitInfo.key))
            for one in found
        }
        self._counters = {id_: wanted[said] for id_, said in known.items() if said in wanted}
        if missing := [one.name for one in MEASURES if one not in self._counters.values()]:
            _log.warning("vSphere does not count %s", ", ".join(missing))
        return self._counters


def samples(answer: Any, counters: Mapping[int, Measure]) -> list[_Sample]:
    """What an EntityMetricCSV says, in the order of time, in bytes, nanoseconds and numbers."""
    info = str(answer.sampleInfoCSV or "").split(",")
    taken = [_moment(text) for text in info[1::2]]
    lengths = [_whole(text) for text in info[::2]]
    found: list[dict[tuple[Measure, str], int]] = [{} for _ in taken]
    for series in answer.value or ():
        measure = counters.get(series.id.counterId)
        if measure is None:
            continue
        for number, text in enumerate(str(series.value or "").split(",")[: len(taken)]):
            times = lengths[number] if measure.per_second else 1
            found[number][measure, str(series.id.instance or "")] = _whole(text) * measure.scale * times
    dated = [_Sample(moment, amounts) for moment, amounts in zip(taken, found, strict=True) if moment is not None]
    return sorted(dated, key=lambda sample: sample.taken)


def _moment(text: str) -> datetime | None:
    with contextlib.suppress(ValueError):
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo else None
    return None


def _whole(text: str) -> int:
    """0 for what was not measured."""
    with contextlib.suppress(ValueError):
        return max(0, int(text))
    return 0
