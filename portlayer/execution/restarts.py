"""Whether and when a container whose run has ended is started again; nothing here touches a container."""

from __future__ import annotations

from portlayer.errors import InvalidArgumentError
from portlayer.v1 import types_pb2

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
