"""One run of a container: from power-on to the exit that the agent reported, or to the VM that went away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from portlayer.agent import AgentClient, AgentError, AgentProtocolError, Follow
from portlayer.agent.waiting import answer_while_on
from portlayer.drivers.base import Machine
from portlayer.errors import DriverError, PortLayerError, UnavailableError
from portlayer.execution.launch_failure import launch_error
from portlayer.execution.standard_input import StandardInput
from portlayer.execution.streams import OutputHub
from portlayer.logs import Chunk, Log
from portlayer.logs.records import Record
from portlayer.v1 import types_pb2
from tether.v1 import tether_pb2

if TYPE_CHECKING:  # which needs this package
    from portlayer.instantclone.clones import Taken

INIT = "init"
COLD_BOOT = types_pb2.START_METHOD_COLD_BOOT
CLONE, POOLED = types_pb2.START_METHOD_CLONE, types_pb2.START_METHOD_POOLED
# The guest broke its promises and was cut off.
LOST_EXIT_CODE = 255
# As for a process that was killed, which is what has become of the VM.
VANISHED_EXIT_CODE = 137
# Under software emulation on a busy host a boot can take very long; a VM that died ends the wait at once.
_BOOT_TIMEOUT_S = 180.0
_START_TIMEOUT_S = 120.0
# What a dead VM's channel still holds is read within this time.
_DRAIN_S = 5.0
_POWER_OFF_S = 10.0
_FULL_DISK_RETRY_S = 1.0
# Guests that claim to live in the future are set right.
_MAX_AHEAD_NS = 5_000_000_000
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ended:
    """How a run ended. With `vm_restarted` its VM is on again, and knows nothing of it."""

    exit_code: int
    oom_killed: bool = False
    error: str = ""
    vm_restarted: bool = False


class Run:
    """Owns the agent's client and what takes its output in. `close` in any case; that does not touch the VM."""

    def __init__(self, machine: Machine, log: Log, hub: OutputHub, number: int) -> None:
        self._machine = machine
        self._log = log
        self._hub = hub
        self._number = number
        self._follow: Follow | None = None
        self._request_id = ""
        self._vm_gone = False
        self.client = AgentClient(machine.open_channel)
        self.stdin: StandardInput | None = None
        self.method = COLD_BOOT
        self.template_id = ""
        self.phases_ns: dict[str, int] = {}

    async def boot(self) -> None:
        """Powers the machine on and waits for its agent. Raises UnavailableError."""
        began = time.monotonic_ns()
        await self._machine.power_on()
        began = self._phase("machine", began)
        self.client.open()
        await self._alive(self.client.hello(timeout_s=_BOOT_TIMEOUT_S))
        self._phase("agent", began)

    async def move_in(self, taken: Taken) -> None:
        """Puts the machine into a clone and reaches for its agent. Raises DriverError, UnavailableError."""
        self.method = POOLED if taken.pooled else CLONE
        self.template_id = taken.template_id
        # A clone from the pool has cost its time before.
        self.phases_ns |= {name: 0 if taken.pooled else spent for name, spent in taken.clone.phases_ns.items()}
        began = time.monotonic_ns()
        await self._machine.power_on(taken.clone)
        began = self._phase("disks", began)
        self.client.open()
        # Its template has said hello in this very version; Start can be the first call.
        await self._alive(self.client.wait_open(_BOOT_TIMEOUT_S))
        self._phase("agent", began)

    async def launch(self, request: tether_pb2.StartRequest) -> tether_pb2.StartResponse:
        """Starts init. Raises LaunchError, UnavailableError."""
        began = time.monotonic_ns()
        self._request_id = request.request_id
        response = await self._alive(self.client.start(request, timeout_s=_START_TIMEOUT_S))
        self._phase("exec", began)
        if response.HasField("failure"):
            raise launch_error(response.failure, "container process")
        self._log.begin_run(self._number)
        if request.process.stdin:
            self.stdin = StandardInput(self.client, INIT)
        return response

    def adopt(self, request_id: str, *, stdin: bool) -> None:
        """Joins the run that another port layer started with that request."""
        self._request_id = request_id
        self.client.open()
        self._log.begin_run(self._number)
        if stdin:
            self.stdin = StandardInput(self.client, INIT, offset=None)

    async def check_adopted(self) -> None:
        """Cuts the power of a VM that runs something else than what was adopted, or nothing."""
        try:
            if await self._started_request_id() != self._request_id:
                await self._machine.power_off()
        except UnavailableError as error:
            _log.warning("container %s: %s", self._machine.id[:12], error)
            await self._machine.power_off()

    async def watch(self) -> Ended:
        """Takes output in until the run has ended; the exit is not acknowledged yet (see `settle`)."""
        self._follow = self.client.follow(INIT, self._log.end_offset)
        off = asyncio.create_task(self._close_when_off())
        try:
            async for message in self._follow:
                if message.HasField("exited"):
                    return Ended(message.exited.exit_code, message.exited.oom_killed)
                await self._take_in(message.output)
        except AgentProtocolError as error:
            await self._machine.power_off()
            return Ended(LOST_EXIT_CODE, error=f"the VM was cut off: {error}")
        except AgentError as error:
            if not self._vm_gone and await self._is_another_boot():
                return Ended(VANISHED_EXIT_CODE, error="its VM was restarted", vm_restarted=True)
            if not self._vm_gone:
                await self._machine.power_off()
                return Ended(LOST_EXIT_CODE, error=f"the VM was cut off: {error}")
        finally:
            off.cancel()
            with contextlib.suppress(asyncio.CancelledError, DriverError):
                await off
        return Ended(VANISHED_EXIT_CODE, error="the VM stopped without reporting an exit status")

    async def settle(self) -> None:
        """The exit is recorded: lets the agent power its VM off in order, and cuts the power if it does not.

        A hypervisor that is away must not keep the container from what comes after its end.
        """
        if self._follow is not None:
            self._follow.acknowledge(self._log.end_offset, exit_recorded=True)
        try:
            await self._until_off()
        except PortLayerError as error:
            _log.warning("container %s has ended; whether its VM is off is not known: %s", self._machine.id[:12], error)

    async def power_off(self) -> None:
        """As `settle`, for an exit that was recorded by a port layer that did not come to tell the agent."""
        with contextlib.suppress(UnavailableError):
            await self.client.power_off(timeout_s=_POWER_OFF_S)
        await self.settle()

    async def close(self) -> None:
        """Lets go of the channel."""
        await self.client.aclose()

    async def _until_off(self) -> None:
        try:
            async with asyncio.timeout(_POWER_OFF_S):
                await self._machine.wait_off()
        except TimeoutError:
            _log.warning("machine %s does not power off: cutting its power", self._machine.id)
            await self._machine.power_off()

    async def _started_request_id(self) -> str:
        """The request id of the Start that the agent carried out. Raises UnavailableError."""
        hello = await self._alive(self.client.hello(timeout_s=_BOOT_TIMEOUT_S))
        return hello.started_request_id

    async def _alive(self, call: Coroutine[Any, Any, _T]) -> _T:
        """The call's answer, or UnavailableError as soon as the machine is off."""
        gone = UnavailableError(f"the VM stopped while it started; its console is in {self._machine.console_log}")
        return await answer_while_on(call, self._machine.wait_off(), gone)

    async def _is_another_boot(self) -> bool:
        """Whether the agent that answers has started nothing: high availability, or a panic, has restarted the VM."""
        try:
            return not await self._started_request_id() and bool(self._request_id)
        except UnavailableError:
            return False

    async def _close_when_off(self) -> None:
        """When the VM has gone away, what its channel still holds is taken in, then the client is closed."""
        await self._machine.wait_off()
        self._vm_gone = True
        self._hub.relax()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                await self.client.disconnected.wait()
        await self.client.aclose()

    async def _take_in(self, output: tether_pb2.Output) -> None:
        """Makes output durable, tells the agent so, hands it to the clients."""
        stream = 2 if output.stream == tether_pb2.STREAM_STDERR else 1
        time_ns = output.time_unix_ns
        now = time.time_ns()
        if time_ns > now + _MAX_AHEAD_NS or not time_ns:
            time_ns = now
        await self._append(Record(stream, self._number, time_ns, output.offset, output.data))
        if self._follow is not None:
            self._follow.acknowledge(self._log.end_offset)
        await self._hub.publish(Chunk(stream, output.data))

    async def _append(self, record: Record) -> None:
        """While the disk is full the container waits, as on a full pipe."""
        warned = False
        while True:
            try:
                self._log.append(record)
                return
            except OSError as error:
                if not warned:
                    _log.error("the log of container %s cannot be written: %s", self._machine.id, error)
                    warned = True
                await asyncio.sleep(_FULL_DISK_RETRY_S)

    def _phase(self, name: str, began_ns: int) -> int:
        now_ns = time.monotonic_ns()
        self.phases_ns[name] = now_ns - began_ns
        return now_ns
