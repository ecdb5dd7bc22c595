"""Bringing a container's run to its end: its init is asked, then killed, and at last the power of its VM is cut."""

from __future__ import annotations

import asyncio
import contextlib

from portlayer.agent import AgentError, AgentRpcError
from portlayer.agent.errors import NOT_FOUND
from portlayer.errors import ConflictError
from portlayer.execution import restarts
from portlayer.execution.current_run import CurrentRun
from portlayer.execution.life import Life
from portlayer.execution.pausing import wake
from portlayer.execution.power import Power
from portlayer.execution.restarts import Restarts
from portlayer.execution.run import INIT, Ended
from portlayer.execution.states import Action
from portlayer.execution.tasks import Tasks
from tether.v1 import tether_pb2

SIGKILL = 9
# Whoever sends one of these (or the stop signal) wants the container to end: it is not restarted.
_ENDING_SIGNALS = frozenset((2, 3, 15, SIGKILL))
DEFAULT_STOP_TIMEOUT_S = 10
# After SIGKILL a guest has this long to report the end before its power is cut.
_KILL_S = 10.0
_STOP_CALL_S = 10.0
_SIGNAL_S = 30.0
_HALT_S = 5.0


class Ending:
    """Of one container."""

    def __init__(self, life: Life, tasks: Tasks, *, current: CurrentRun, power: Power, restarts: Restarts) -> None:
        self._life = life
        self._tasks = tasks
        self._current = current
        self._power = power
        self._restarts = restarts

    async def stop(self, timeout_s: int | None, signal: int) -> bool:
        """Asks init to end, kills it after the time (None: its own, negative: never). False when it did not run."""
        async with self._life.lock:
            if self._restarts.due:
                await self._restarts.give_up()
                self._life.emit("stop")
                return True
            if not self._life.live:
                return False
            exit_ = self._current.next_exit()
            grace_s = timeout_s if timeout_s is not None else self._own_timeout_s()
            await self._ask(signal or self._life.spec.stop_signal, grace_s)
        await self._wait(exit_, None if grace_s < 0 else float(grace_s))
        self._life.emit("stop")
        return True

    async def kill(self, signal: int) -> None:
        """Sends a signal to init; with SIGKILL returns when the run has ended. Raises ConflictError."""
        stop_signal = self._life.spec.stop_signal
        async with self._life.lock:
            if self._restarts.due:
                await self._restarts.give_up()
                return
            self._life.require_live()
            exit_ = self._current.next_exit()
            if signal == stop_signal or signal in _ENDING_SIGNALS:
                await self.halt()
            if signal in (SIGKILL, stop_signal):
                await wake(self._life)
            try:
                await self._signal(signal)
                self._life.emit("kill", {"signal": str(signal)})
            except ConflictError:
                if signal != SIGKILL:
                    raise
                # It has just ended by itself; what is left is to hear of it.
        if signal == SIGKILL:
            self._current.output.relax()
            await self._wait(exit_, _KILL_S)

    async def halt(self) -> None:
        """Somebody ends it: no policy starts it again, not even if the port layer dies before it has ended.

        A hypervisor that does not take that down in time does not keep the container from ending.
        """
        self._life.record.halted = True
        if self._life.spec.restart.kind != restarts.NEVER:
            saving = self._tasks.spawn(self._life.save(), f"halt {self._life.short_id}")
            await asyncio.wait([saving], timeout=_HALT_S)

    async def _ask(self, signal: int, grace_s: int) -> None:
        """Has the agent stop init, which takes no time; one that does not do so much has its VM switched off."""
        await self.halt()
        await wake(self._life)
        self._life.move(Action.STOP)
        request = tether_pb2.StopRequest(signal=signal)
        if grace_s >= 0:
            request.grace_ms = grace_s * 1000
        self._life.emit("kill", {"signal": str(signal)})
        try:
            await self._current.require().client.stop(request, timeout_s=_STOP_CALL_S)
        except AgentError as error:
            await self._power.cut(f"it does not stop ({error})")

    async def _wait(self, exit_: asyncio.Future[Ended], grace_s: float | None) -> None:
        """Waits for the end of a run; after the time it is killed, and at last the VM's power is cut."""
        for patience in (grace_s, _KILL_S):
            try:
                async with asyncio.timeout(patience):
                    await asyncio.shield(exit_)
                return
            except TimeoutError:
                self._current.output.relax()
                if run := self._current.run:
                    request = tether_pb2.SignalRequest(process_id=INIT, signal=SIGKILL)
                    with contextlib.suppress(AgentError):
                        await run.client.signal(request, timeout_s=_STOP_CALL_S)
        await self._power.cut("it does not end")
        await asyncio.shield(exit_)

    async def _signal(self, signal: int) -> None:
        patience_s = _KILL_S if signal == SIGKILL else _SIGNAL_S
        request = tether_pb2.SignalRequest(process_id=INIT, signal=signal)
        try:
            await self._current.require().client.signal(request, timeout_s=patience_s)
        except AgentRpcError as error:
            if error.rpc_code == NOT_FOUND:
                raise ConflictError(f"container {self._life.id} is not running") from error
            raise
        except AgentError as error:
            if signal != SIGKILL:
                raise
            await self._power.cut(f"its agent does not answer ({error})")

    def _own_timeout_s(self) -> int:
        spec = self._life.spec
        return spec.stop_timeout_s if spec.HasField("stop_timeout_s") else DEFAULT_STOP_TIMEOUT_S
