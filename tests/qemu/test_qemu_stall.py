"""Guests that wait for space on the host's disk."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from qemu_machines import PATIENCE_S

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


async def within_reason(happening: Awaitable[Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await happening


def watches() -> list[asyncio.Task[Any]]:
    """Of disks, that are under way."""
    return [task for task in asyncio.all_tasks() if "Stall" in repr(task.get_coro())]


@pytest.fixture
async def disk(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Disk]:
    disk = Disk()
    monkeypatch.setattr(os, "statvfs", disk.statvfs)
    monkeypatch.setattr(stall, "RETRY_SECONDS", 0.001)
    yield disk
    await within_reason(asyncio.gather(*watches(), return_exceptions=True))


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

    waiting = Stall(Path("/"), go_on)
    waiting.begin()
    async with asyncio.timeout(PATIENCE_S):
        while disk.calls < 2:
            await asyncio.sleep(0.001)


async def test_whoever_decides_otherwise_ends_it(disk: Disk) -> None:
    waiting = Stall(Path("/"), disk.go_on)
    waiting.begin()
    await within_reason(disk.looked.wait())
    (watch,) = watches()
    waiting.end()
    waiting.end()
    disk.free = 1 << 30
    await within_reason(asyncio.wait([watch]))
    assert watch.done()
    assert disk.calls == 0


async def test_a_failure_is_told_and_does_not_spread(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    disk.free, disk.error = 1 << 30, DriverError("QEMU went away")
    waiting = Stall(Path("/"), disk.go_on)
    waiting.begin()
    await within_reason(asyncio.wait(watches()))
    assert "QEMU went away" in caplog.text
    assert not waiting.under_way
