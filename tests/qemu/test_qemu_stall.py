"""Guests that wait for space on the host's disk."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from portlayer.drivers.qemu import stall
from portlayer.drivers.qemu.stall import Stall
from portlayer.errors import DriverError


class Disk:
    """The host's disk, and what is called when it has space."""

    def __init__(self) -> None:
        self.free = 0
        self.looked = asyncio.Event()
        self.calls = 0
        self.called = asyncio.Event()
        self.error: Exception | None = None

    def statvfs(self, _: object) -> SimpleNamespace:
        self.looked.set()
        return SimpleNamespace(f_bavail=self.free, f_frsize=1)

    async def go_on(self) -> None:
        self.calls += 1
        self.called.set()
        if self.error:
            raise self.error


async def within_reason(happening: Coroutine[Any, Any, Any]) -> None:
    async with asyncio.timeout(10):
        await happening


@pytest.fixture
async def disk(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Disk]:
    disk = Disk()
    monkeypatch.setattr(os, "statvfs", disk.statvfs)
    monkeypatch.setattr(stall, "RETRY_SECONDS", 0.001)
    yield disk
    await asyncio.sleep(0)
    assert not [task for task in asyncio.all_tasks() if "Stall" in repr(task.get_coro())]


async def test_goes_on_once_when_there_is_space(disk: Disk) -> None:
    waiting = Stall(Path("/"), disk.go_on)
    waiting.begin()
    waiting.begin()
    await within_reason(disk.looked.wait())
    assert waiting.under_way
    assert disk.calls == 0
    disk.free = 1 << 30
    await within_reason(disk.called.wait())
    assert not waiting.under_way
    assert disk.calls == 1


async def test_stopped_again_at_once(disk: Disk) -> None:
    """The event of the second stop may come before the first call has returned."""
    disk.free = 1 << 30

    async def go_on() -> None:
        await disk.go_on()
        if disk.calls == 1:
            waiting.begin()
            disk.called.clear()

    waiting = Stall(Path("/"), go_on)
    waiting.begin()
    await within_reason(disk.called.wait())
    async with asyncio.timeout(10):
        while disk.calls < 2:
            await asyncio.sleep(0.001)


async def test_whoever_decides_otherwise_ends_it(disk: Disk) -> None:
    waiting = Stall(Path("/"), disk.go_on)
    waiting.begin()
    await within_reason(disk.looked.wait())
    waiting.end()
    waiting.end()
    disk.free = 1 << 30
    await asyncio.sleep(0.02)
    assert disk.calls == 0


async def test_a_failure_is_told_and_does_not_spread(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    disk.free, disk.error = 1 << 30, DriverError("QEMU went away")
    waiting = Stall(Path("/"), disk.go_on)
    waiting.begin()
    await within_reason(disk.called.wait())
    await asyncio.sleep(0.01)
    assert "QEMU went away" in caplog.text
    assert not waiting.under_way
