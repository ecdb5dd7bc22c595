"""What starts by instant clone are meant to reach, and whether a run of the benchmark shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench import idle
from bench.results import Result

_RUN_TIMES = 1.0
_API_MS = 200.0
_COLD_TIMES = 10.0
_MANY_TIMES = 1.5
_EXEC_SECONDS = 1.0
_PRIVATE_MIB = 40.0
_TEMPLATE_SECONDS = 8.0
_NOT_MEASURED = "-"


@dataclass(frozen=True)
class Verdict:
    """One target."""

    target: str
    limit: str
    measured: str
    # None: it was not measured.
    met: bool | None

    @property
    def word(self) -> str:
        return {True: "met", False: "MISSED", None: "not measured"}[self.met]


def verdicts(results: list[Result]) -> list[Verdict]:
    """All targets, in the order in which they were set. A failed start misses its target, however fast the others."""
    by_name = {result.name: result for result in results}
    return [judge(by_name) for judge in _TARGETS]


_Judge = Callable[[dict[str, Result]], Verdict]


def _next_to_dockerd(name: str, times: float) -> _Judge:
    def judge(results: dict[str, Result]) -> Verdict:
        result = results.get(name)
        limit = f"<= {times:.1f} x dockerd's"
        ours, theirs = _medians(result, "vch", "dockerd")
        if result is None or ours is None or theirs is None:
            return _unmeasured(result, name, limit)
        measured = f"{ours / theirs:.2f} x, {ours:.3f} s (p90 {result.p90('vch'):.3f}) to {theirs:.3f} s"
        measured += f" (p90 {result.p90('dockerd'):.3f})"
        return _verdict(result, limit, measured, ours <= times * theirs)

    return judge


def _api_start(results: dict[str, Result]) -> Verdict:
    result = results.get("api-start")
    limit = f"<= {_API_MS:.0f} ms"
    (ours,) = _medians(result, "vch")
    if result is None or ours is None:
        return _unmeasured(result, "api-start", limit)
    phases = ", ".join(f"{name} {value:.0f}" for name, value in result.parts("vch").items())
    return _verdict(result, limit, f"{ours:.0f} ms, p90 {result.p90('vch'):.0f} ({phases})", ours <= _API_MS)


def _next_to_cold_boot(results: dict[str, Result]) -> Verdict:
    result = results.get("run-no-network")
    limit = f">= {_COLD_TIMES:.0f} x faster than our cold boot"
    ours, cold = _medians(result, "vch", "vch-cold")
    if result is None or ours is None or cold is None:
        return _unmeasured(result, "run-no-network", limit)
    return _verdict(result, limit, f"{cold / ours:.1f} x, {cold:.3f} s to {ours:.3f} s", cold >= _COLD_TIMES * ours)


def _answers(results: dict[str, Result]) -> Verdict:
    result = results.get("idle")
    limit = f"all within {_EXEC_SECONDS:.0f} s"
    (slowest,) = _medians(result, "vch")
    if result is None or slowest is None:
        return _unmeasured(result, "idle", limit)
    return _verdict(result, limit, f"{slowest:.3f} s", slowest <= _EXEC_SECONDS)


def _private_memory(results: dict[str, Result]) -> Verdict:
    result = results.get("idle")
    limit = f"<= {_PRIVATE_MIB:.0f} MiB private each"
    most = result.parts("vch").get(idle.PRIVATE_MOST) if result else None
    if result is None or most is None:
        return _unmeasured(result, "idle", limit)
    return _verdict(result, limit, f"{most:.1f} MiB the most", most <= _PRIVATE_MIB)


def _template(results: dict[str, Result]) -> Verdict:
    result = results.get("template")
    limit = f"<= {_TEMPLATE_SECONDS:.0f} s"
    (made,) = _medians(result, "vch")
    if result is None or made is None:
        return _unmeasured(result, "template", limit)
    return _verdict(result, limit, f"{made:.1f} s", made <= _TEMPLATE_SECONDS)


def _medians(result: Result | None, *endpoints: str) -> tuple[float | None, ...]:
    return tuple(result.median(name) if result else None for name in endpoints)


def _verdict(result: Result, limit: str, measured: str, met: bool) -> Verdict:
    if failures := len(result.failures.get("vch", ())):
        measured += f", {failures} failed"
    return Verdict(result.what, limit, measured, met and not failures)


def _unmeasured(result: Result | None, name: str, limit: str) -> Verdict:
    """Failing altogether is missing a target; leaving it out is not."""
    if result and "vch" in result.failures:
        return Verdict(result.what, limit, "it failed", False)
    return Verdict(result.what if result else name, limit, _NOT_MEASURED, None)


_TARGETS: tuple[_Judge, ...] = (
    _next_to_dockerd("run-no-network", _RUN_TIMES),
    _api_start,
    _next_to_cold_boot,
    _next_to_dockerd("parallel", _MANY_TIMES),
    _next_to_dockerd("sequential", _MANY_TIMES),
    _answers,
    _private_memory,
    _template,
)
