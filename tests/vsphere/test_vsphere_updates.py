"""The long polls: they go on whatever happens, and tell everything."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pyVmomi import vim, vmodl
from vsphere_front import Front
from vsphere_sessions import through
from vsphere_trouble import drop_session, raise_fault
from vsphere_waiting import until

from portlayer.drivers.vsphere import updates
from portlayer.drivers.vsphere.session import Session


@pytest.fixture
async def session(front: Front) -> AsyncIterator[Session]:
    async with through(front) as session:
        yield session
        front.clear()


async def test_long_polls_outlive_whatever_a_source_raises(
    front: Front, session: Session, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr(updates, "_RETRY_S", 0.01)
    source = Source(None, KeyError("a mistake"))
    await session.updates.add(source)
    await until(lambda: source.completed == 1)
    front.drop_sessions()
    await until(lambda: source.completed == 2)
    assert source.begun == 3


async def test_long_polls_that_fail_at_once_are_begun_less_and_less_often(
    front: Front, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = recorded_pauses(session, monkeypatch)
    front.inject("WaitForUpdatesEx", raise_fault(vmodl.fault.SystemError(reason="")), times=None)
    front.drop_sessions()
    await until(lambda: len(pauses) > 10)
    front.clear()
    assert sorted(pauses) == pauses
    assert pauses[0] < 1.0 < pauses[-1] == updates._RETRY_S


async def test_a_session_that_ends_while_it_is_followed_again_is_followed_soon(
    front: Front, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was made of it in the session before is gone, so it fails once more; vSphere is there all the same."""
    source = Source()
    await session.updates.add(source)
    await until(lambda: source.completed == 1)
    pauses = recorded_pauses(session, monkeypatch)
    ended = front.inject("CreateFilter", drop_session())
    front.drop_sessions()
    await until(lambda: ended.hits and source.completed == 2)
    assert max(pauses) < 1.0 < updates._RETRY_S


def recorded_pauses(session: Session, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the session was to wait, from now on; it does not."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr(session, "pause", pause)
    return pauses


async def test_an_update_in_pieces_is_complete_with_its_last() -> None:
    """vCenter cuts what is large (`truncated`): a source may be in the first piece alone."""
    one, other = Source(), Source()
    server = Server()
    followed = updates.Updates(cast(Session, server))
    await followed.add(one)
    await followed.add(other)
    await server.tell(truncated=False, of=[0, 1])
    assert (one.completed, other.completed) == (1, 1)
    await server.tell(truncated=True, of=[0])
    assert (one.completed, other.completed) == (1, 1)
    await server.tell(truncated=False, of=[1])
    assert (one.completed, other.completed) == (2, 2)
    await followed.close()


async def test_a_source_misses_nothing_that_is_told_while_it_is_added() -> None:
    """The long poll tells of a filter as soon as the server has it, and that may come before the filter's name."""
    one, other = Source(), Source()
    server = Server()
    followed = updates.Updates(cast(Session, server))
    await followed.add(one)
    await server.tell(truncated=False, of=[0])
    server.told_early = True
    await followed.add(other)
    await until(lambda: other.completed == 1)
    assert len(other.applied) == 1
    await followed.close()


class Server:
    """Stands in for a session: filters are numbers, and what the long poll is answered is said by the test."""

    def __init__(self) -> None:
        self.told_early = False
        self.content = SimpleNamespace(
            rootFolder=vim.Folder("group-d1"),
            propertyCollector=SimpleNamespace(CreatePropertyCollector=self._collector),
        )
        self._filters = 0
        self._answers: asyncio.Queue[Any] = asyncio.Queue()

    def _collector(self) -> Any:
        return SimpleNamespace(CreateFilter="filter", WaitForUpdatesEx="wait", DestroyPropertyCollector="destroy")

    async def call(self, method: Any, *args: Any, what: str) -> Any:
        if method != "filter":
            return method()
        made = SimpleNamespace(_moId=str(self._filters))
        self._filters += 1
        if self.told_early:
            await self.tell(truncated=False, of=[self._filters - 1])
        return made

    async def poll(self, method: Any, *args: Any) -> Any:
        return await self._answers.get() if method == "wait" else None

    async def tell(self, *, truncated: bool, of: list[int]) -> None:
        """Returns when the long poll has had it and waits again, or cannot go on."""
        told = [SimpleNamespace(filter=SimpleNamespace(_moId=str(one)), objectSet=[None]) for one in of]
        self._answers.put_nowait(SimpleNamespace(version="1", filterSet=told, truncated=truncated))
        for _ in range(10):
            await asyncio.sleep(0)

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Source:
    """Follows the name of the root folder."""

    def __init__(self, *troubles: Exception | None) -> None:
        """`troubles`: what its beginnings raise."""
        self._troubles = list(troubles)
        self.begun = 0
        self.completed = 0
        self.applied: list[Any] = []

    async def begin(self, session: Session) -> Any:
        self.begun += 1
        if self._troubles and (trouble := self._troubles.pop(0)) is not None:
            raise trouble
        collector = vmodl.query.PropertyCollector
        return collector.FilterSpec(
            propSet=[collector.PropertySpec(type=vim.Folder, pathSet=["name"])],
            objectSet=[collector.ObjectSpec(obj=session.content.rootFolder)],
        )

    def apply(self, update: Any) -> None:
        self.applied.append(update)

    def complete(self) -> None:
        self.completed += 1
