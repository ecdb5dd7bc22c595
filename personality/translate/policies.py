"""Restart policies and health checks, between Docker's API and the port layer's, both ways."""

from __future__ import annotations

from typing import Any

from personality.errors import DockerError
from personality.times import rfc3339
from personality.translate.bodies import Healthcheck, RestartPolicy
from portlayer.v1 import types_pb2

_KINDS = {
    "no": types_pb2.RestartPolicy.KIND_UNSPECIFIED,
    "always": types_pb2.RestartPolicy.KIND_ALWAYS,
    "unless-stopped": types_pb2.RestartPolicy.KIND_UNLESS_STOPPED,
    "on-failure": types_pb2.RestartPolicy.KIND_ON_FAILURE,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}
_MAX_RETRIES = (1 << 31) - 1
_LEAST_NS = 1_000_000
_HEALTH_WORDS = {
    types_pb2.Health.STATUS_STARTING: "starting",
    types_pb2.Health.STATUS_HEALTHY: "healthy",
    types_pb2.Health.STATUS_UNHEALTHY: "unhealthy",
}
HEALTH_STATES = frozenset({"none", *_HEALTH_WORDS.values()})


def restart_policy(given: RestartPolicy | None) -> types_pb2.RestartPolicy:
    """Raises DockerError 400."""
    given = given or RestartPolicy()
    name, retries = given.name or "no", given.maximum_retry_count or 0
    if name not in _KINDS:
        raise DockerError(
            400,
            f"invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', 'on-failure', or "
            "'unless-stopped'",
        )
    if retries < 0 or (retries and name != "on-failure"):
        raise DockerError(
            400,
            "invalid restart policy: maximum retry count can only be used with 'on-failure'"
            + (" and cannot be negative" if retries < 0 else ""),
        )
    return types_pb2.RestartPolicy(kind=_KINDS[name], max_retries=min(retries, _MAX_RETRIES))


def described_policy(policy: types_pb2.RestartPolicy) -> dict[str, Any]:
    """RestartPolicy of HostConfig."""
    return {"Name": _NAMES.get(policy.kind, "no"), "MaximumRetryCount": policy.max_retries}


def health_check(given: Healthcheck | None) -> types_pb2.HealthCheck:
    """Raises DockerError 400."""
    given = given or Healthcheck()
    times = {
        "Interval": given.interval,
        "Timeout": given.timeout,
        "StartPeriod": given.start_period,
        "StartInterval": given.start_interval,
    }
    for name, value in times.items():
        if value and value < _LEAST_NS:
            raise DockerError(400, f"{name} in Healthcheck cannot be less than 1ms")
    if (given.retries or 0) < 0:
        raise DockerError(400, "Retries in Healthcheck cannot be negative")
    return types_pb2.HealthCheck(
        test=given.test or (),
        interval_ns=given.interval or 0,
        timeout_ns=given.timeout or 0,
        start_period_ns=given.start_period or 0,
        start_interval_ns=given.start_interval or 0,
        retries=min(given.retries or 0, _MAX_RETRIES),
    )


def described_check(check: types_pb2.HealthCheck) -> dict[str, Any]:
    """Healthcheck of Config; empty for none. Times that are left to the default are left out, as Go does it."""
    if not check.test:
        return {}
    values = {
        "Interval": check.interval_ns,
        "Timeout": check.timeout_ns,
        "StartPeriod": check.start_period_ns,
        "StartInterval": check.start_interval_ns,
        "Retries": check.retries,
    }
    return {"Test": list(check.test), **{name: value for name, value in values.items() if value}}


def health_word(state: types_pb2.ContainerState) -> str:
    """ "none", "starting", "healthy" or "unhealthy"."""
    return _HEALTH_WORDS.get(state.health.status, "none")


def described_health(state: types_pb2.ContainerState) -> dict[str, Any]:
    """Health of State."""
    return {
        "Status": health_word(state),
        "FailingStreak": state.health.failing_streak,
        "Log": [
            {
                "Start": rfc3339(one.began_unix_ns),
                "End": rfc3339(one.ended_unix_ns),
                "ExitCode": one.exit_code,
                "Output": one.output.decode(errors="replace"),
            }
            for one in state.health.probes
        ],
    }
