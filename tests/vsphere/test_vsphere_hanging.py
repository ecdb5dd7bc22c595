"""A vCenter that takes connections and calls, and answers none of them: how long anybody waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from vsphere_front import Front
from vsphere_sessions import through
from vsphere_trouble import held
from vsphere_waiting import until

from portlayer.drivers.vsphere import pulse
from portlayer.drivers.vsphere.session import CONCURRENCY, Session
from portlayer.drivers.vsphere.upload import Folder
from portlayer.errors import DriverError

# All that the sessions of these tests ask for, but for long polls.
CALLS = (
    *("FindByInventoryPath", "CurrentTime", "Login", "RetrievePropertiesEx", "HEAD"),
    *("CreatePropertyCollector", "DestroyPropertyCollector"),
)


@pytest.fixture
async def session(front: Front, gate: threading.Event) -> AsyncIterator[Session]:
    async with through(front) as session:
        yield session
        gate.set()


def hang(front: Front, gate: threading.Event, *but: str) -> None:
    front.clear()
    for method in set(CALLS) - set(but):
        front.inject(method, held(gate), times=None)


async def look(session: Session) -> Any:
    return await session.call(session.content.searchIndex.FindByInventoryPath, "/DC0/vm", what="looking")


@contextlib.contextmanager
def hurried() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pulse, "SILENCE_S", 0.2)
        patch.setattr(pulse, "QUESTION_S", 0.2)
        yield


async def fails_all(session: Session, callers: int) -> None:
    outcomes = await asyncio.gather(*(look(session) for _ in range(callers)), return_exceptions=True)
    for outcome in outcomes:
        assert isinstance(outcome, DriverError)
        assert str(outcome).startswith("looking: vSphere does not answer (nothing came for")


async def test_all_who_wait_are_told_and_nothing_more_is_sent(
    front: Front,
    session: Session,
    gate: threading.Event,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Those too whose turn never came: there would be four rounds of calls that time out."""
    hang(front, gate)
    with hurried():
        await fails_all(session, 4 * CONCURRENCY)
        await fails_all(session, 4 * CONCURRENCY)
    assert front.calls["FindByInventoryPath"] <= CONCURRENCY
    assert front.calls["CurrentTime"] <= 2, "the question that tells a vCenter that hangs"
    told = [record.getMessage() for record in caplog.records if "hangs: it has answered nothing" in record.getMessage()]
    assert len(told) == 1

    gate.set()
    await look(session)
    assert "answers again" in caplog.text


async def test_one_that_is_slow_over_a_call_is_waited_for(
    front: Front, session: Session, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "SILENCE_S", 0.01)
    monkeypatch.setattr(pulse, "QUESTION_S", 60.0)
    hang(front, gate, "CurrentTime")
    looking = asyncio.ensure_future(look(session))
    await until(lambda: front.calls["CurrentTime"] >= 3)
    assert not looking.done()
    gate.set()
    assert await looking is not None


async def test_nobody_queues_for_a_login_that_hangs(front: Front, session: Session, gate: threading.Event) -> None:
    """Everybody would try it anew, one after the other."""
    front.drop_sessions()
    hang(front, gate, "FindByInventoryPath")
    with hurried():
        await fails_all(session, 2 * CONCURRENCY)
    assert front.calls["Login"] < CONCURRENCY
    gate.set()
    await look(session)


async def test_a_file_is_not_looked_for_for_longer(front: Front, session: Session, gate: threading.Event) -> None:
    """A datastore may take minutes over what it is sent; one that is asked how large a file is may not."""
    folder = Folder(session, "DC0", "LocalDS_0")
    hang(front, gate)
    with hurried(), pytest.raises(DriverError, match="looking for some/file: vSphere does not answer"):
        await folder.size("some/file")
    await folder.close()


async def test_a_session_that_is_closed_keeps_nobody_waiting(front: Front, gate: threading.Event) -> None:
    async with through(front) as session:
        hang(front, gate)
        waiting = [asyncio.ensure_future(look(session)) for _ in range(2 * CONCURRENCY)]
        await until(lambda: front.calls["FindByInventoryPath"] >= CONCURRENCY)
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(one, DriverError) and "is closed" in str(one) for one in outcomes), outcomes
