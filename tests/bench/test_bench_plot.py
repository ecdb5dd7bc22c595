"""The drawing of starts by phases."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from bench import plot
from bench.plot import Bar

_SVG = "{http://www.w3.org/2000/svg}"
_POOLED = Bar("pooled clone", 150.0, {"disks": 50.0, "exec": 70.0, "API, output": 30.0})
_DOCKERD = Bar("dockerd", 300.0, {})
_COLD = Bar("cold boot", 4000.0, {"machine": 100.0, "agent": 3900.0})


def _bars_drawn(svg: str) -> list[tuple[str, float]]:
    """What the tooltip says, and the width."""
    found = ElementTree.fromstring(svg).iter(f"{_SVG}rect")
    return [(title, float(one.attrib["width"])) for one in found if (title := one.findtext(f"{_SVG}title"))]


def _labels(svg: str) -> list[str]:
    return [one.text or "" for one in ElementTree.fromstring(svg).iter(f"{_SVG}text")]


def test_segments_are_as_long_as_their_phases() -> None:
    drawn = _bars_drawn(plot.draw([_POOLED, _DOCKERD]))
    assert [title for title, _ in drawn] == [
        "pooled clone, disks: 50.0 ms",
        "pooled clone, exec: 70.0 ms",
        "pooled clone, API, output: 30.0 ms",
        "dockerd: 300.0 ms",
    ]
    assert sum(width for title, width in drawn if "pooled" in title) == pytest.approx(drawn[-1][1] / 2, abs=0.2)


def test_short_bars_get_a_panel_where_they_can_be_read() -> None:
    together = _bars_drawn(plot.draw([_COLD, _POOLED, _DOCKERD]))
    widths = [width for title, width in together if title.startswith("dockerd")]
    assert len(widths) == 2
    assert widths[1] == pytest.approx(max(width for _, width in together), rel=0.05)
    assert len([title for title, _ in together if title.startswith("cold boot, agent")]) == 1


def test_legend_names_each_phase_once_and_totals_stand_beside() -> None:
    labels = _labels(plot.draw([_COLD, _POOLED]))
    assert [labels.count(phase) for phase in ("machine", "agent", "disks", "exec", "API, output")] == [1] * 5
    assert "4000 ms" in labels


def test_what_is_drawn_is_what_was_saved(tmp_path: Path) -> None:
    starts = {
        "name": "api-start",
        "median": {"dockerd": 300.0, "vch": 150.0},
        "parts": {"dockerd": {}, "vch": _POOLED.phases},
    }
    (tmp_path / "results.json").write_text(json.dumps({"measures": [starts]}))
    done = CliRunner().invoke(plot.main, [str(tmp_path / "results.json"), str(tmp_path / "plot.svg")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "plot.svg").read_text() == plot.draw([_POOLED, _DOCKERD])


def test_results_without_starts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"measures": []}')
    done = CliRunner().invoke(plot.main, [str(tmp_path / "results.json"), str(tmp_path / "plot.svg")])
    assert done.exit_code == 1
    assert "no measure api-start" in done.output
    assert not (tmp_path / "plot.svg").exists()


def test_axis_has_at_most_ten_marks_at_round_numbers() -> None:
    assert [plot._step(longest) for longest in (9, 11, 45, 160, 4000)] == [1, 2, 5, 20, 500]
