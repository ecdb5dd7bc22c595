"""Figures from samples: medians, 90th percentiles and how the VCH compares."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Any

_WHAT = {
    "run": "docker run --rm busybox true",
    "exec": "docker exec C true",
    "create-rm": "docker create + rm",
    "attach": "docker run, 256 MiB of zeros out",
    "logs": "docker logs of 500,000 lines",
    "memory": "memory of an idle container",
    "parallel": "10 docker run -d at once",
}


@dataclass
class Result:
    """The samples of one measure, by endpoint."""

    name: str
    unit: str
    more_is_better: bool
    samples: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def median(self, endpoint: str) -> float | None:
        """None without samples."""
        samples = self.samples.get(endpoint)
        return statistics.median(samples) if samples else None

    def p90(self, endpoint: str) -> float | None:
        """The sample that nine of ten are no worse than; None without samples."""
        samples = sorted(self.samples.get(endpoint, ()), reverse=self.more_is_better)
        return samples[math.ceil(0.9 * len(samples)) - 1] if samples else None

    @property
    def ratio(self) -> float | None:
        """How many times as good the VCH is as dockerd; None when one of them has no samples."""
        ours, theirs = self.median("vch"), self.median("dockerd")
        if not ours or not theirs:
            return None
        return ours / theirs if self.more_is_better else theirs / ours


def as_data(described: dict[str, str], results: list[Result]) -> dict[str, Any]:
    """For programs."""
    return {
        "endpoints": described,
        "measures": [
            {
                "name": result.name,
                "what": _WHAT[result.name],
                "unit": result.unit,
                "more_is_better": result.more_is_better,
                "samples": result.samples,
                "median": {name: result.median(name) for name in result.samples},
                "p90": {name: result.p90(name) for name in result.samples},
                "times_as_good_as_dockerd": result.ratio,
                "failures": result.failures,
            }
            for result in results
        ],
    }


def as_table(described: dict[str, str], results: list[Result]) -> str:
    """For people: median and, in brackets, 90th percentile."""
    lines = [f"{name}: {words}" for name, words in described.items()]
    lines += ["", f"{'':<34}{'unit':<9}" + "".join(f"{name:>18}" for name in described) + f"{'vch is':>12}"]
    for result in results:
        cells = "".join(f"{_cell(result, name):>18}" for name in described)
        ratio = "-" if result.ratio is None else f"{result.ratio:.2f} times"
        lines.append(f"{_WHAT[result.name]:<34}{result.unit:<9}{cells}{ratio:>12}")
    lines += ["", "Median (90th percentile). The last column: times as good as dockerd, more than 1 is better."]
    for result in results:
        lines += [f"FAILED {result.name} on {name}: {words}" for name, words in result.failures.items()]
    return "\n".join(lines)


def _cell(result: Result, endpoint: str) -> str:
    median, p90 = result.median(endpoint), result.p90(endpoint)
    if median is None or p90 is None:
        return "failed" if endpoint in result.failures else "-"
    return f"{_number(median)} ({_number(p90)})"


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"
