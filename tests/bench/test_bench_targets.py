"""Targets met, missed, and not measured."""

from __future__ import annotations

import pytest

from bench import idle
from bench.measures import measures
from bench.results import Result
from bench.sampling import Sample
from bench.targets import Verdict, verdicts

_TARGETS = 8


def _result(name: str, parts: dict[str, float] | None = None, **values: float) -> Result:
    measure = next(one for one in measures(64) if one.name == name)
    result = Result(name, measure.what, measure.unit)
    for endpoint, value in values.items():
        result.add(endpoint.replace("_", "-"), Sample(value, parts or {}))
    return result


def _judged(result: Result) -> list[Verdict]:
    return [one for one in verdicts([result]) if one.met is not None]


def test_without_results_nothing_is_met_or_missed() -> None:
    assert [one.met for one in verdicts([])] == [None] * _TARGETS


@pytest.mark.parametrize(
    ("result", "met"),
    [
        (_result("run-no-network", vch=0.3, dockerd=0.3), [True]),
        (_result("run-no-network", vch=0.31, dockerd=0.3), [False]),
        (_result("run-no-network", vch=0.3, vch_cold=3.0), [True]),
        (_result("run-no-network", vch=0.3, vch_cold=2.9), [False]),
        (_result("api-start", vch=200.0), [True]),
        (_result("api-start", vch=201.0), [False]),
        (_result("parallel", vch=1.5, dockerd=1.0), [True]),
        (_result("sequential", vch=1.6, dockerd=1.0), [False]),
        (_result("idle", {idle.PRIVATE_MOST: 40.0}, vch=1.1), [False, True]),
        (_result("idle", {idle.PRIVATE_MOST: 40.1}, vch=1.0), [True, False]),
        (_result("template", vch=8.0), [True]),
        (_result("template", vch=8.1), [False]),
    ],
)
def test_limits(result: Result, met: list[bool]) -> None:
    assert [one.met for one in _judged(result)] == met


def test_a_failed_start_misses_the_target_of_fast_ones() -> None:
    result = _result("sequential", vch=1.0, dockerd=1.0)
    result.fail("dockerd", "not ours")
    assert [one.met for one in _judged(result)] == [True]
    result.fail("vch", "exit code 125")
    (verdict,) = _judged(result)
    assert verdict.met is False
    assert verdict.measured.endswith("1 failed")


def test_failing_altogether_is_a_miss() -> None:
    result = Result("template", "making a template", "s")
    result.fail("vch", "it has no template")
    (verdict,) = _judged(result)
    assert (verdict.met, verdict.measured) == (False, "it failed")
