"""The event history and its live stream."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from patience import PATIENCE_S

from portlayer import events
from portlayer.errors import ExhaustedError
from portlayer.events import EventHub


async def take(hub: EventHub, since_ns: int, until_ns: int) -> list[str]:
    return [event.action async for event in hub.stream(since_ns, until_ns) if event]


async def test_history_survives_and_live_events_follow_it_without_gap(tmp_path: Path) -> None:
    hub = EventHub(tmp_path / "events.jsonl")
    hub.emit("container", "create", "1", {"name": "x"})
    again = EventHub(tmp_path / "events.jsonl")
    stream = again.stream(1, 0)
    assert await anext(stream) is None
    again.emit("container", "start", "1", {})
    seen = [await anext(stream), await anext(stream)]
    assert [event.action for event in seen if event] == ["create", "start"]
    assert seen[0] is not None
    assert seen[0].attributes == {"name": "x"}
    await stream.aclose()


async def test_without_since_there_is_no_history(tmp_path: Path) -> None:
    hub = EventHub(tmp_path / "events.jsonl")
    hub.emit("container", "create", "1", {})
    assert await take(hub, 0, time.time_ns() + 20_000_000) == []


async def test_until_in_the_past_ends_after_the_history(tmp_path: Path) -> None:
    hub = EventHub(tmp_path / "events.jsonl")
    hub.emit("container", "create", "1", {})
    assert await take(hub, 1, time.time_ns()) == ["create"]


async def test_a_reader_far_behind_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_BEHIND", 3)
    hub = EventHub(tmp_path / "events.jsonl")
    stream = hub.stream(0, 0)
    await anext(stream)
    for number in range(9):
        hub.emit("container", str(number), "1", {})
    with pytest.raises(ExhaustedError, match="behind"):
        async with asyncio.timeout(PATIENCE_S):
            async for _ in stream:
                pass


async def test_the_history_is_bounded_and_survives_torn_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_FILE_BYTES", 2000)
    hub = EventHub(tmp_path / "events.jsonl")
    for number in range(200):
        hub.emit("container", str(number), "1", {})
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 4100
    with open(tmp_path / "events.jsonl", "ab") as file:
        file.write(b'{"time_ns": 1, "ty')
    assert (await take(EventHub(tmp_path / "events.jsonl"), 1, time.time_ns()))[-1] == "199"
