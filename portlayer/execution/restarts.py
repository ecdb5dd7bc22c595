"""Whether and when a container whose run has ended is started again; the start itself is not done here."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from portlayer.errors import InvalidArgumentError
from portlayer.execution import states
from portlayer.execution.states import Action
from portlayer.v1 import types_pb2

if TYPE_CHECKING:
    from portlayer.execution.current_run import CurrentRun
    from portlayer.execution.life import Life

NEVER = types_pb2.RestartPolicy.KIND_UNSPECIFIED
ALWAYS = types_pb2.RestartPolicy.KIND_ALWAYS
UNLESS_STOPPED = types_pb2.RestartPolicy.KIND_UNLESS_STOPPED
ON_FAILURE = types_pb2.RestartPolicy.KIND_ON_FAILURE

# Docker's figures: what fails at once is tried less and less often, what has run for a while at once.
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 60.0
_LONG_RUN_S = 10.0


def check(policy: types_pb2.RestartPolicy) -> None:
    """Raises InvalidArgumentError."""
    if policy.kind not in types_pb2.RestartPolicy.Kind.values():
        raise InvalidArgumentError(f"invalid restart policy {policy.kind}")
    if policy.max_retries and policy.kind != ON_FAILURE:
        raise InvalidArgumentError("maximum retry count can only be used with 'on-failure'")


def wanted(policy: types_pb2.RestartPolicy, *, exit_code: int, restarts: int) -> bool:
    """Whether a run that ended by itself, after so many restarts, is followed by another."""
    if policy.kind == ON_FAILURE:
        return exit_code != 0 and (not policy.max_retries or restarts < policy.max_retries)
    return policy.kind in (ALWAYS, UNLESS_STOPPED)


class Pauses:
    """How long to wait before each restart."""

    def __init__(self) -> None:
        self._next_s = FIRST_PAUSE_S

    def after(self, ran_s: float) -> float:
        """Seconds, for a run that has taken so long."""
        if ran_s >= _LONG_RUN_S:
            self._next_s = FIRST_PAUSE_S
        pause_s, self._next_s = self._next_s, min(2 * self._next_s, LONGEST_PAUSE_S)
        return pause_s


class Restarts:
    """Those of one container: while one is due its state is RESTARTING."""

    def __init__(self, life: Life, current: CurrentRun) -> None:
        self._life = life
        self._current = current
        self._pauses = Pauses()
        self._pause_s = 0.0
        # Set when the restart that is due is not to be waited for any more.
        self._recalled = asyncio.Event()

    @property
    def due(self) -> bool:
        return self._life.state.status == states.RESTARTING

    def begin_anew(self) -> None:
        """Somebody starts it: what failed before does not count."""
        self._life.record.halted = False
        self._life.state.restart_count = 0
        self._pauses = Pauses()

    def consider(self, ran_s: float) -> None:
        """A run has ended after so long, or could not begin: one is due if the policy wants it."""
        if not self._life.record.halted and self._wanted():
            self._await(self._pauses.after(ran_s))

    def consider_at_open(self) -> None:
        """As the port layer begins: what has ended before is started again at once, "always" even what was stopped."""
        stopped = self._life.record.halted
        if self._life.spec.restart.kind == ALWAYS if stopped else self._wanted():
            self._await(0)

    async def pause(self) -> None:
        """Returns when the restart that is due may begin, or is not due any more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._pause_s):
                await self._recalled.wait()

    async def give_up(self) -> None:
        """Somebody stops it while one is due: then it has ended. The caller holds the container's lock."""
        self._life.move(Action.GIVE_UP)
        self._life.record.halted = True
        self._recalled.set()
        self._current.announce()
        await self._life.save()

    def _wanted(self) -> bool:
        state = self._life.state
        return wanted(self._life.spec.restart, exit_code=state.exit_code, restarts=state.restart_count)

    def _await(self, pause_s: float) -> None:
        self._life.move(Action.AWAIT_RESTART)
        self._life.state.restart_count += 1
        self._pause_s = pause_s
        self._recalled.clear()
