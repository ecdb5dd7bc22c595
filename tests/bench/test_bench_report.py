"""Figures from samples."""

from __future__ import annotations

import pytest

from bench import report
from bench.measures import measures
from bench.results import Result
from bench.sampling import Sample
from bench.targets import Verdict


def _result(*, more_is_better: bool, vch: list[float], dockerd: list[float]) -> Result:
    samples = {"vch": [Sample(value) for value in vch], "dockerd": [Sample(value) for value in dockerd]}
    return Result("run", "a run", "s", more_is_better, samples)


def test_p90_is_the_bad_end() -> None:
    ten = [float(n) for n in range(1, 11)]
    result = _result(more_is_better=False, vch=ten, dockerd=[])
    assert (result.median("vch"), result.p90("vch")) == (5.5, 9.0)
    assert _result(more_is_better=True, vch=ten, dockerd=[]).p90("vch") == 2.0


def test_ratio_is_above_one_when_ahead() -> None:
    assert _result(more_is_better=False, vch=[1.0], dockerd=[2.0]).ratio == pytest.approx(2.0)
    assert _result(more_is_better=True, vch=[1.0], dockerd=[2.0]).ratio == pytest.approx(0.5)
    assert _result(more_is_better=True, vch=[1.0], dockerd=[]).ratio is None


def test_table_tells_failures_from_what_was_not_measured() -> None:
    result = Result("exec", "an exec", "s", False, {"vch": [Sample(0.1), Sample(0.2)]}, {"dockerd": ["no such thing"]})
    table = report.as_table({"vch": "qemu", "dockerd": "20.10", "vch-cold": "qemu"}, [result], [])
    assert next(line for line in table.splitlines() if line.startswith("an exec")).split()[-5:] == [
        *("0.150", "(0.200)", "failed", "-", "-")
    ]
    assert "FAILED exec on dockerd: no such thing" in table
    assert report.as_data({}, [result], [])["measures"][0]["times_as_good_as_dockerd"] is None


def test_failures_inside_a_sample_are_reported_one_by_one() -> None:
    result = Result("parallel", "many", "s")
    result.add("vch", Sample(3.0, failures=("first", "second")))
    assert result.median("vch") == 3.0
    table = report.as_table({"vch": ""}, [result], [])
    assert "FAILED parallel on vch: first\nFAILED parallel on vch: second" in table


def test_parts_are_medians_of_the_samples_that_have_them() -> None:
    result = Result("api-start", "a start", "ms")
    result.add("vch", Sample(30.0, {"disks": 1.0}, "clone"))
    result.add("vch", Sample(20.0, {"disks": 3.0, "exec": 9.0}, "pooled"))
    result.add("vch", Sample(10.0, {"disks": 4.0}, "pooled"))
    result.add("dockerd", Sample(40.0))
    assert result.parts("vch") == {"disks": 3.0, "exec": 9.0}
    assert list(result.start_methods("vch").items()) == [("pooled", 2), ("clone", 1)]
    table = report.as_table({"vch": "", "dockerd": ""}, [result], [])
    assert "  vch: 2 pooled, 1 clone" in table
    # dockerd knows no phases: it has no column there.
    assert next(line for line in table.splitlines() if "disks" in line).split() == ["disks", "3.000"]
    assert report.as_data({}, [result], [])["measures"][0]["parts"]["vch"] == {"disks": 3.0, "exec": 9.0}


def test_verdicts_are_told_to_people_and_programs() -> None:
    verdict = Verdict("a start", "<= 1 s", "2 s", False)
    assert "MISSED       a start, <= 1 s: 2 s" in report.as_table({}, [], [verdict])
    assert report.as_data({}, [], [verdict])["targets"] == [
        {"target": "a start", "limit": "<= 1 s", "measured": "2 s", "met": False}
    ]


def test_every_measure_can_be_reported() -> None:
    results = [Result(one.name, one.what, one.unit, one.more_is_better) for one in measures(8)]
    table = report.as_table({"vch": ""}, results, [])
    assert table.count(" -") >= len(results)
    assert "exec, slowest of 8 idle" in table
