"""Draws how long a start takes, by phases: `python -m bench.plot RESULTS.json start-latency.svg`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import click

# Endpoints from the slowest way to the fastest, and what they are called here.
_BARS = {"vch-cold": "cold boot", "vch-clone": "clone", "vch": "pooled clone", "dockerd": "dockerd"}
# Colours that differ for colour-blind eyes too, on white and on black; with each the colour of text on it.
_COLOURS = {
    "machine": ("#0072b2", "#fff"),
    "restore": ("#e69f00", "#000"),
    "disks": ("#009e73", "#fff"),
    "agent": ("#cc79a7", "#000"),
    "exec": ("#56b4e9", "#000"),
    "API, output": ("#d55e00", "#fff"),
}
_OTHER = ("#8c8c8c", "#000")
_STYLE = """text { font: 12px system-ui, sans-serif; fill: #24292f } .title { font-weight: 600; font-size: 14px }
.faint { fill: #57606a } line { stroke: #57606a; stroke-opacity: .25 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .faint { fill: #9198a1 } line { stroke: #9198a1 } }"""
_LEFT, _WIDTH, _RIGHT = 110, 580, 80
_ROW, _BAR, _GAP = 32, 22, 50
# From this length on, px, a segment has room for its figure.
_ROOM = 30
# Bars this much shorter than the longest are drawn again, to a scale of their own.
_SHORT = 1 / 3


@dataclass(frozen=True)
class Bar:
    """One way to start."""

    label: str
    # Milliseconds, as measured from end to end.
    total: float
    # Milliseconds by phase; empty where nothing is known of phases.
    phases: dict[str, float]


def bars(data: dict[str, Any]) -> list[Bar]:
    """From what `python -m bench --json` writes. Raises ValueError when it did not measure starts by the API."""
    found = [one for one in data["measures"] if one["name"] == "api-start" and one["median"]]
    if not found:
        raise ValueError("there is no measure api-start in it")
    medians, parts = found[0]["median"], found[0]["parts"]
    return [Bar(label, medians[name], parts.get(name, {})) for name, label in _BARS.items() if name in medians]


def draw(all_bars: list[Bar]) -> str:
    """The SVG. Short bars beside a long one are in a panel of their own, too, where their phases can be seen."""
    longest = max(bar.total for bar in all_bars)
    short = [bar for bar in all_bars if bar.total < longest * _SHORT]
    elements = [_text(_LEFT, 22, "From the API call to the first byte of output, median", "title"), *_legend(all_bars)]
    y = 70
    for panel in filter(None, (all_bars, short)):
        elements += _panel(panel, y)
        y += len(panel) * _ROW + _GAP
    width = _LEFT + _WIDTH + _RIGHT
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y - 10}" width="{width}" height="{y - 10}">'
    return "\n".join((head, f"<style>{_STYLE}</style>", *elements, "</svg>", ""))


def _panel(panel: list[Bar], top: int) -> Iterator[str]:
    longest = max(bar.total for bar in panel)
    scale = _WIDTH / longest
    bottom = top + len(panel) * _ROW
    step = _step(longest)
    for tick in range(int(longest / step) + 1):
        x = _LEFT + tick * step * scale
        yield f'<line x1="{x:.1f}" y1="{top - 6}" x2="{x:.1f}" y2="{bottom}"/>'
        yield _text(x, bottom + 16, f"{tick * step:g}{' ms' if tick == 0 else ''}", "faint", "middle")
    for row, bar in enumerate(panel):
        y = top + row * _ROW
        yield _text(_LEFT - 10, y + 15, bar.label, anchor="end")
        yield from _segments(bar, y, scale)
        yield _text(_LEFT + bar.total * scale + 8, y + 15, f"{bar.total:.0f} ms")


def _segments(bar: Bar, y: int, scale: float) -> Iterator[str]:
    x = float(_LEFT)
    for phase, ms in (bar.phases or {"": bar.total}).items():
        fill, ink = _COLOURS.get(phase, _OTHER)
        width = max(0.0, ms * scale)
        yield f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{fill}">'
        yield f"<title>{escape(f'{bar.label}, {phase}' if phase else bar.label)}: {ms:.1f} ms</title></rect>"
        if phase and width > _ROOM:
            yield f'<text x="{x + width / 2:.1f}" y="{y + 15}" text-anchor="middle" style="fill:{ink}">{ms:.0f}</text>'
        x += width


def _legend(all_bars: list[Bar]) -> Iterator[str]:
    x = _LEFT
    known = {phase for bar in all_bars for phase in bar.phases}
    # In the order in which they come, then those without a colour of their own.
    for phase in [*(one for one in _COLOURS if one in known), *sorted(known - _COLOURS.keys())]:
        yield f'<rect x="{x}" y="36" width="12" height="12" fill="{_COLOURS.get(phase, _OTHER)[0]}"/>'
        yield _text(x + 17, 46, phase, "faint")
        x += 34 + 7 * len(phase)


def _step(longest: float) -> float:
    """Between marks of the axis: 1, 2 or 5 times a power of ten, for at most ten marks."""
    step = 1.0
    while longest / step > 10:
        step *= 2.5 if f"{step:e}".startswith("2") else 2
    return step


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


@click.command()
@click.argument("results", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("svg", type=click.Path(dir_okay=False, writable=True, path_type=Path))
def main(results: Path, svg: Path) -> None:
    """Draw RESULTS, as `python -m bench --json` writes them, into SVG."""
    try:
        svg.write_text(draw(bars(json.loads(results.read_text()))))
    except ValueError as error:
        raise click.ClickException(f"{results}: {error}") from error


if __name__ == "__main__":
    main()
