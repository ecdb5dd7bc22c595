"""What a container uses, by two witnesses: its guest, and the hypervisor.

The guest knows its processes, processors and memory best. What it cannot say comes from the hypervisor: the traffic of
its network cards, and everything when it does not answer, since it is paused or hangs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol

from portlayer.agent import AgentError
from portlayer.drivers.base import CardUsage, Machine, MachineSpec, MachineUsage
from portlayer.errors import PortLayerError
from portlayer.v1 import execution_pb2 as pb
from tether.v1 import tether_pb2

# For the hypervisor's first answer, and for a guest where the hypervisor knows something.
PATIENCE_S = 2.0
# As long as one waits for a guest that is the only witness.
GUEST_S = 30.0
_log = logging.getLogger(__name__)


class AskGuest(Protocol):
    """Asks the guest, which has so many seconds to answer. Raises AgentError."""

    def __call__(self, *, timeout_s: float) -> Awaitable[tether_pb2.StatsResponse]: ...


@dataclass(frozen=True)
class Usage:
    """Either may be missing."""

    spec: MachineSpec
    guest: tether_pb2.StatsResponse | None = None
    machine: MachineUsage | None = None

    @property
    def known(self) -> bool:
        return self.guest is not None or self.machine is not None

    def sample(self) -> pb.StreamStatsResponse:
        """For clients. The time is now."""
        sample = pb.StreamStatsResponse(time_unix_ns=time.time_ns())
        if self.guest is not None:
            _add_guest(sample, self.guest)
        elif self.machine is not None:
            _add_machine(sample, self.machine, self.spec)
        if self.machine is not None:
            sample.networks.extend(_network(number, card) for number, card in enumerate(self.machine.cards))
            sample.memory_stat["host_memory"] = self.machine.memory_bytes
            sample.memory_stat["host_active_memory"] = self.machine.active_memory_bytes
        return sample


async def ask(machine: Machine, guest: AskGuest | None) -> Usage:
    """Both, as far as they answer; `guest` is None for one that cannot. Raises AgentError when there is no witness."""
    counted = await _of_machine(machine)
    if guest is None:
        return Usage(machine.spec, None, counted)
    try:
        return Usage(machine.spec, await guest(timeout_s=GUEST_S if counted is None else PATIENCE_S), counted)
    except AgentError as error:
        if counted is None:
            raise
        _log.debug("machine %s: its guest does not say what it uses: %s", machine.id[:12], error)
        return Usage(machine.spec, None, counted)


async def _of_machine(machine: Machine) -> MachineUsage | None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await machine.usage()
    except (TimeoutError, PortLayerError) as error:
        _log.debug("machine %s: the hypervisor does not say what it uses: %s", machine.id[:12], error)
        return None


def _add_guest(sample: pb.StreamStatsResponse, guest: tether_pb2.StatsResponse) -> None:
    """A guest without a limit of its own is limited by its VM's memory."""
    sample.MergeFrom(
        pb.StreamStatsResponse(
            cpu_total_ns=guest.cpu_total_ns,
            cpu_user_ns=guest.cpu_user_ns,
            cpu_system_ns=guest.cpu_system_ns,
            system_cpu_ns=guest.system_cpu_ns,
            online_cpus=guest.online_cpus,
            throttled_periods=guest.throttled_periods,
            throttled_ns=guest.throttled_ns,
            memory_usage_bytes=guest.memory_usage_bytes,
            memory_limit_bytes=guest.memory_limit_bytes or guest.vm_memory_bytes,
            memory_stat=dict(guest.memory_stat),
            pids=guest.pids,
            pids_limit=guest.pids_limit,
            block=[pb.BlockDeviceStats.FromString(one.SerializeToString()) for one in guest.block],
        )
    )


def _add_machine(sample: pb.StreamStatsResponse, machine: MachineUsage, spec: MachineSpec) -> None:
    """The whole VM, kernel and agent included. What its processors could have done is the time that passed."""
    sample.cpu_total_ns = machine.cpu_ns
    sample.system_cpu_ns = sample.time_unix_ns * spec.cpus
    sample.online_cpus = spec.cpus
    sample.memory_usage_bytes = machine.memory_bytes
    sample.memory_limit_bytes = spec.memory_bytes
    sample.block.add(read_bytes=machine.read_bytes, write_bytes=machine.written_bytes)


def _network(number: int, card: CardUsage) -> pb.NetworkStats:
    return pb.NetworkStats(
        interface=f"eth{number}",
        received_bytes=card.received_bytes,
        sent_bytes=card.sent_bytes,
        received_packets=card.received_packets,
        sent_packets=card.sent_packets,
        received_dropped=card.received_dropped,
        sent_dropped=card.sent_dropped,
    )
