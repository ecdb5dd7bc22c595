"""A start that is only tried out: what it needs is then in the guest's memory, and under emulation translated too.

The container of a rehearsal has an empty image and holds nothing of anybody's.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable

from portlayer.agent import AgentClient, AgentError, AgentRpcError
from portlayer.agent.errors import FAILED_PRECONDITION
from portlayer.agent.waiting import answer_while_on
from portlayer.drivers.base import DiskNames, Guest
from portlayer.errors import DriverError
from portlayer.execution.process_spec import init_request
from portlayer.v1 import types_pb2
from tether.v1 import tether_pb2

_log = logging.getLogger(__name__)
_BOOT_S = 180.0
_START_S = 120.0
# What the agent lays into every container that wants an init; run as the program, it says how it is used and ends.
_PROGRAM = ("/sbin/docker-init", "-h")


async def rehearse(guest: Guest, times: int) -> None:
    """Starts and ends a container in a guest that runs, and leaves no trace of it but what it has warmed.

    Raises DriverError when the guest does not do its part; it is then of no use.
    """
    try:
        async with AgentClient(guest.open_channel) as agent:
            await _while_on(guest, agent.hello(timeout_s=_BOOT_S))
            await guest.attach_practice_disks()
            for _ in range(times):
                await _while_on(guest, _start_and_end(agent, guest.disk_names))
            await guest.detach_practice_disks()
    except AgentError as error:
        raise DriverError(f"a start could not be rehearsed: {error}") from error


async def stand_still(guest: Guest) -> None:
    """Has the guest's agent stop its VM for good; nobody is connected to it then.

    Raises DriverError when the agent does not answer. A hypervisor that the guest cannot ask leaves it running, and
    clones are made of what runs.
    """
    try:
        async with AgentClient(guest.open_channel) as agent:
            await _while_on(guest, agent.freeze(secrets.token_hex(16)))
    except AgentRpcError as error:
        if error.rpc_code != FAILED_PRECONDITION:
            raise DriverError(f"the template cannot be frozen: {error}") from error
        _log.warning("the template runs on while it is cloned: %s", error)
    except AgentError as error:
        raise DriverError(f"the template cannot be frozen: {error}") from error


async def _start_and_end(agent: AgentClient, disks: DiskNames) -> None:
    request = _request(disks)
    response = await agent.start(request, timeout_s=_START_S)
    if response.HasField("failure"):
        raise DriverError(f"a start could not be rehearsed: {response.failure.message}")
    async with asyncio.timeout(_START_S):
        follow = agent.follow("init", 0)
        async for message in follow:
            if message.HasField("exited"):
                follow.acknowledge(message.exited.end_offset, exit_recorded=True)
    await agent.reset(timeout_s=_START_S)


def _request(disks: DiskNames) -> tether_pb2.StartRequest:
    process = types_pb2.ProcessConfig(cmd=_PROGRAM, env=["PATH=/sbin"])
    spec = types_pb2.ContainerSpec(process=process, hostname="rehearsal", init_process=True)
    request = init_request(
        spec,
        secrets.token_hex(16),
        memory_limit_bytes=0,
        cpu_limit_ns_per_s=0,
        machine_id=secrets.token_hex(16),
        disks=disks,
    )
    request.rehearsal = True
    return request


async def _while_on(guest: Guest, call: Awaitable[object]) -> None:
    """Awaits the call; raises DriverError as soon as the guest is off."""
    try:
        await answer_while_on(call, guest.wait_off(), DriverError("the guest went off while it rehearsed"))
    except TimeoutError as error:
        raise DriverError("the guest did not end its rehearsal in time") from error
