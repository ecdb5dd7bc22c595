"""Health checks: a program run beside init now and then, and what its exit codes say about the container."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from portlayer.errors import InvalidArgumentError
from portlayer.v1 import types_pb2

Health = types_pb2.Health
STARTING, HEALTHY, UNHEALTHY = Health.STATUS_STARTING, Health.STATUS_HEALTHY, Health.STATUS_UNHEALTHY

# Docker's defaults and limits.
_INTERVAL_NS = _TIMEOUT_NS = 30_000_000_000
_START_INTERVAL_NS = 5_000_000_000
_RETRIES = 3
_LEAST_NS = 1_000_000
_KEPT_PROBES = 5
MAX_OUTPUT = 4096
_KINDS = ("CMD", "CMD-SHELL", "NONE")


class ImageHealthCheck(Protocol):
    """What an image says about its containers' health; empty and 0 where it says nothing."""

    @property
    def test(self) -> Sequence[str]: ...
    @property
    def interval_ns(self) -> int: ...
    @property
    def timeout_ns(self) -> int: ...
    @property
    def start_period_ns(self) -> int: ...
    @property
    def start_interval_ns(self) -> int: ...
    @property
    def retries(self) -> int: ...


def complete(check: types_pb2.HealthCheck, image: ImageHealthCheck) -> None:
    """Fills in from the image what is open. Raises InvalidArgumentError."""
    if not check.test and image.test and image.test[0] in _KINDS:
        check.test.extend(image.test)
    if not check.test:
        check.Clear()
        return
    for name in ("interval_ns", "timeout_ns", "start_period_ns", "start_interval_ns", "retries"):
        if not getattr(check, name):
            setattr(check, name, getattr(image, name))
    if check.test[0] not in _KINDS:
        raise InvalidArgumentError(f"unknown kind of health check {check.test[0]!r}: it may be {', '.join(_KINDS)}")
    for name in ("Interval", "Timeout", "Start_Period", "Start_Interval"):
        if 0 < getattr(check, f"{name.lower()}_ns") < _LEAST_NS:
            raise InvalidArgumentError(f"{name.replace('_', '')} in Healthcheck cannot be less than 1ms")


def command(check: types_pb2.HealthCheck) -> list[str]:
    """Program and arguments; empty for no check."""
    kind, *words = check.test or ("NONE",)
    if kind == "NONE" or not words:
        return []
    return words if kind == "CMD" else ["/bin/sh", "-c", *words]


def output_of(data: bytes) -> bytes:
    """What is kept of a probe's output."""
    return data if len(data) <= MAX_OUTPUT else data[:MAX_OUTPUT] + b"..."


class Monitor:
    """Probes a container again and again; what it finds goes into `health`."""

    def __init__(
        self,
        check: types_pb2.HealthCheck,
        health: types_pb2.Health,
        *,
        probe: Callable[[list[str], float], Awaitable[types_pb2.HealthProbe | None]],
        changed: Callable[[str], None],
    ) -> None:
        """What was found before is forgotten.

        `probe` runs a program for at most so many seconds (None: not now); `changed` hears of another status.
        """
        self._check = check
        self._health = health
        self._probe = probe
        self._changed = changed
        self._health.Clear()
        self._health.status = STARTING
        # By a clock that nobody sets.
        self._period_end_ns = time.monotonic_ns() + check.start_period_ns

    async def run(self) -> None:
        """Probes until it is cancelled."""
        arguments = command(self._check)
        timeout_s = (self._check.timeout_ns or _TIMEOUT_NS) / 1e9
        while True:
            await asyncio.sleep(self._pause_ns() / 1e9)
            within_period = time.monotonic_ns() < self._period_end_ns
            found = await self._probe(arguments, timeout_s)
            if found is not None:
                self._take(found, within_period=within_period)

    def _pause_ns(self) -> int:
        interval_ns = self._check.interval_ns or _INTERVAL_NS
        left_ns = self._period_end_ns - time.monotonic_ns()
        if left_ns <= 0:
            return interval_ns
        if self._health.status == STARTING:
            interval_ns = min(interval_ns, self._check.start_interval_ns or _START_INTERVAL_NS)
        return min(interval_ns, left_ns)

    def _take(self, found: types_pb2.HealthProbe, *, within_period: bool) -> None:
        health = self._health
        before = health.status
        kept = [*health.probes, found][-_KEPT_PROBES:]
        del health.probes[:]
        health.probes.extend(kept)
        if found.exit_code == 0:
            health.failing_streak = 0
            health.status = HEALTHY
        elif health.status != STARTING or not within_period:
            health.failing_streak += 1
            if health.failing_streak >= (self._check.retries or _RETRIES):
                health.status = UNHEALTHY
        if health.status != before:
            self._changed("healthy" if health.status == HEALTHY else "unhealthy")
