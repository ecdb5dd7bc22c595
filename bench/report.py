"""A run of the benchmark, for people and for programs."""

from __future__ import annotations

from typing import Any

from bench.results import Result
from bench.targets import Verdict

_LABEL = 50


def as_data(described: dict[str, str], results: list[Result], verdicts: list[Verdict]) -> dict[str, Any]:
    """For programs."""
    return {
        "endpoints": described,
        "measures": [
            {
                "name": result.name,
                "what": result.what,
                "unit": result.unit,
                "more_is_better": result.more_is_better,
                "samples": {name: [one.value for one in samples] for name, samples in result.samples.items()},
                "median": {name: result.median(name) for name in result.samples},
                "p90": {name: result.p90(name) for name in result.samples},
                "parts": {name: result.parts(name) for name in result.samples},
                "start_methods": {name: result.start_methods(name) for name in result.samples},
                "times_as_good_as_dockerd": result.ratio,
                "failures": result.failures,
            }
            for result in results
        ],
        "targets": [
            {"target": one.target, "limit": one.limit, "measured": one.measured, "met": one.met} for one in verdicts
        ],
    }


def as_table(described: dict[str, str], results: list[Result], verdicts: list[Verdict]) -> str:
    """For people: median and, in brackets, 90th percentile; then what the figures are made of, and the targets."""
    lines = [f"{name}: {words}" for name, words in described.items()]
    lines += ["", f"{'':<34}{'unit':<9}" + "".join(f"{name:>18}" for name in described) + f"{'vch is':>12}"]
    for result in results:
        cells = "".join(f"{_cell(result, name):>18}" for name in described)
        ratio = "-" if result.ratio is None else f"{result.ratio:.2f} times"
        lines.append(f"{result.what:<34}{result.unit:<9}{cells}{ratio:>12}")
    lines += ["", "Median (90th percentile). The last column: times as good as dockerd, more than 1 is better."]
    for result in results:
        lines += _details(result)
    lines += ["", *(f"{one.word:<13}{one.target}, {one.limit}: {one.measured}" for one in verdicts)]
    for result in results:
        lines += [f"FAILED {result.name} on {name}: {why}" for name, all_ in result.failures.items() for why in all_]
    return "\n".join(lines)


def _details(result: Result) -> list[str]:
    """The parts of a measure, a line each, with the endpoints that have parts as columns."""
    parts = {name: found for name in result.samples if (found := result.parts(name))}
    if not parts:
        return []
    lines = ["", f"{f'{result.what} ({result.unit}), medians':<{_LABEL}}" + "".join(f"{name:>18}" for name in parts)]
    for label in dict.fromkeys(label for found in parts.values() for label in found):
        cells = (_number(found[label]) if label in found else "-" for found in parts.values())
        lines.append(f"  {label:<{_LABEL - 2}}" + "".join(f"{cell:>18}" for cell in cells))
    for name in parts:
        if methods := result.start_methods(name):
            lines.append(f"  {name}: " + ", ".join(f"{count} {method}" for method, count in methods.items()))
    return lines


def _cell(result: Result, endpoint: str) -> str:
    median, p90 = result.median(endpoint), result.p90(endpoint)
    if median is None or p90 is None:
        return "failed" if endpoint in result.failures else "-"
    return f"{_number(median)} ({_number(p90)})"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
