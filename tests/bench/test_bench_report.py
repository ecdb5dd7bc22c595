"""Figures from samples."""

from __future__ import annotations

import pytest

from bench import report
from bench.measures import MEASURES


def _result(*, more_is_better: bool, vch: list[float], dockerd: list[float]) -> report.Result:
    return report.Result("run", "s", more_is_better, {"vch": vch, "dockerd": dockerd})


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
    result = report.Result("exec", "s", False, {"vch": [0.1, 0.2]}, {"dockerd": "no such thing"})
    table = report.as_table({"vch": "qemu", "dockerd": "20.10"}, [result])
    assert "0.150 (0.200)" in table
    assert "FAILED exec on dockerd: no such thing" in table
    assert report.as_data({}, [result])["measures"][0]["times_as_good_as_dockerd"] is None


def test_every_measure_can_be_reported() -> None:
    results = [report.Result(one.name, one.unit, one.more_is_better) for one in MEASURES]
    assert report.as_table({"vch": ""}, results).count(" -") >= len(MEASURES)
