"""A session that ends leaves no connection open, whatever is still under way then."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from vsphere_front import Front
from vsphere_sessions import through
from vsphere_simulator import HOST
from vsphere_trouble import held

from portlayer.drivers.vsphere import session as sessions
from portlayer.drivers.vsphere.endpoint import Credentials, Endpoint
from portlayer.drivers.vsphere.session import Session
from portlayer.errors import DriverError


def answered() -> None:
    """Returns when all calls of sessions have ended."""
    for thread in threading.enumerate():
        if thread.name == "vsphere" and thread is not threading.current_thread():
            thread.join()


async def test_an_answer_that_comes_while_connections_are_closed(front: Front) -> None:
    """Its connection goes back to the others when they have been closed, or are about to be."""
    gate = threading.Event()
    late = front.inject("FindByInventoryPath", held(gate))
    async with through(front) as session:
        stub = session._stub
        drop, dropped = stub.DropConnections, []

        def drop_and_wait() -> None:
            drop()
            dropped.append(threading.current_thread())
            if dropped == [threading.main_thread()]:
                gate.set()
                answered()

        stub.DropConnections = drop_and_wait
        asking = asyncio.create_task(
            session.call(session.content.searchIndex.FindByInventoryPath, "/DC0", what="looking")
        )
        await asyncio.to_thread(late.hit.wait)
    with pytest.raises(DriverError, match="is closed"):
        await asking
    assert stub.pool == []


async def test_a_session_that_is_given_up_before_it_is_there(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    stubs: list[Any] = []
    made = sessions.Stub

    def noted(**how: Any) -> Any:
        stubs.append(made(**how))
        return stubs[-1]

    monkeypatch.setattr(sessions, "Stub", noted)
    gate = threading.Event()
    begun = front.inject("RetrieveServiceContent", held(gate))
    session = Session(
        Endpoint(HOST, front.port, thumbprint=front.simulator.thumbprint),
        Credentials(front.simulator.user, front.simulator.password),
    )
    opening = asyncio.create_task(session.open())
    await asyncio.to_thread(begun.hit.wait)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    gate.set()
    await asyncio.to_thread(answered)
    assert [stub.pool for stub in stubs] == [[]]
