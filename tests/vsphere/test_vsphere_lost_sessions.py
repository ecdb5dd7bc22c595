"""What vSphere answers to those whose session is over, who are not logged in again, or who cannot reach it."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pyVmomi import vim
from vsphere_front import Action, Front
from vsphere_sessions import through
from vsphere_trouble import (
    cut_after,
    cut_before,
    drop_session,
    no_soap,
    raise_fault,
    read_nothing,
    unavailable,
    with_cookie,
)

from portlayer.drivers.vsphere import pulse
from portlayer.drivers.vsphere import session as sessions
from portlayer.drivers.vsphere.inventory import Inventory
from portlayer.drivers.vsphere.session import Session
from portlayer.errors import DriverError

REFUSED = vim.fault.InvalidLogin(msg="Cannot complete login due to an incorrect user name or password.")


@pytest.fixture
async def session(front: Front) -> AsyncIterator[Session]:
    async with through(front) as session:
        yield session
        front.clear()


async def look(session: Session) -> Any:
    return await session.call(session.content.searchIndex.FindByInventoryPath, "/DC0/vm", what="looking")


@pytest.mark.parametrize("ended", [drop_session, read_nothing], ids=["vCenter", "ESXi"])
async def test_nothing_is_gone_because_the_session_is(
    front: Front, session: Session, ended: Callable[[], Action]
) -> None:
    """Neither fails the reading of somebody who is not logged in: it looks as if there were nothing."""
    folder = await look(session)
    front.inject("RetrievePropertiesEx", ended())
    assert await session.read([folder], ["name"]) == {folder: {"name": "vm"}}
    assert front.calls["Login"] == 2


@pytest.mark.parametrize("trouble", [drop_session, cut_before, cut_after, unavailable])
@pytest.mark.parametrize("method", ["RetrievePropertiesEx", "ContinueRetrievePropertiesEx"])
async def test_an_inventory_of_many_pages_is_read_whole(
    front: Front, session: Session, method: str, trouble: Callable[[], Action], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page can be had once: when its answer is lost, the pages before it are read again."""
    folders = [entity.object for entity in (await Inventory.read(session)).all(vim.Folder)]
    whole = await session.read(folders, ["name"])
    assert len(whole) >= 4
    monkeypatch.setattr(sessions, "_PAGE", 2)
    injection = front.inject(method, trouble())
    assert await session.read(folders, ["name"]) == whole
    assert injection.hits == 1


async def test_a_cookie_that_nobody_asked_for_is_not_taken(front: Front, session: Session) -> None:
    """A call that was under way when the session ended is answered when there is another already."""
    cookie = session.cookie
    front.inject("FindByInventoryPath", with_cookie("somebody-new"))
    await look(session)
    assert session.cookie == cookie
    await look(session)
    assert front.calls["Login"] == 1


async def test_a_login_in_a_session_that_is_logged_in(front: Front, session: Session) -> None:
    """Its answer was lost, say. vSphere refuses the second in the same session like a wrong password."""
    front.inject("FindByInventoryPath", raise_fault(vim.fault.NotAuthenticated()))
    await look(session)
    assert front.calls["Login"] == 2


async def test_a_refused_login_is_not_repeated_at_once(
    front: Front, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vCenter would lock the account, which others may use too."""
    front.drop_sessions()
    refused = front.inject("Login", raise_fault(REFUSED), times=None)
    for _ in range(3):
        with pytest.raises(DriverError, match=r"user name or password (are|were) refused"):
            await look(session)
    assert refused.hits == 1
    monkeypatch.setattr(session, "_no_login_before", 0.0)  # a minute later
    front.clear()
    await look(session)


@pytest.mark.parametrize("body", [b"starting", b""])
async def test_answers_that_are_no_soap(front: Front, session: Session, body: bytes) -> None:
    front.inject("FindByInventoryPath", no_soap(body), times=None)
    with pytest.raises(DriverError, match="looking: "):
        await look(session)
    front.clear()
    await look(session)


async def test_a_vcenter_that_starts_is_waited_for(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyvmomi asks for the versions of the API first, and raises a bare Exception when it gets no list of them."""
    answers = iter([Exception("it is down or is not a VIM server"), SyntaxError("no XML")])
    negotiate = sessions.SmartStubAdapter

    def asked(**where: Any) -> Any:
        if (trouble := next(answers, None)) is not None:
            raise trouble
        return negotiate(**where)

    monkeypatch.setattr(sessions, "SmartStubAdapter", asked)
    async with through(front) as session:
        await look(session)


async def test_a_server_that_does_not_answer_is_given_up(
    front: Front, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    answered = threading.Event()
    request.addfinalizer(answered.set)
    monkeypatch.setattr(pulse, "SILENCE_S", 0.1)
    monkeypatch.setattr(pulse, "QUESTION_S", 0.1)
    monkeypatch.setattr(sessions, "SmartStubAdapter", lambda **where: answered.wait())
    with pytest.raises(DriverError, match="does not answer"):
        async with through(front):
            pass
