"""Sessions of ours with the simulator."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from vsphere_simulator import HOST, Simulator

from portlayer.drivers.vsphere.endpoint import Credentials, Endpoint
from portlayer.drivers.vsphere.session import Session


@contextlib.asynccontextmanager
async def opened(simulator: Simulator) -> AsyncIterator[Session]:
    """A session that is logged in."""
    endpoint = Endpoint(HOST, simulator.port, ca_file=simulator.ca_pem)
    session = Session(endpoint, Credentials(simulator.user, simulator.password))
    await session.open()
    try:
        yield session
    finally:
        await session.close()


def denied(monkeypatch: pytest.MonkeyPatch, *ids: str) -> None:
    """vcsim grants whatever is asked for; here, all but these."""
    call = Session.call

    async def answered(self: Session, method: Any, *args: Any, **kwargs: Any) -> Any:
        answer = await call(self, method, *args, **kwargs)
        for entity in answer if kwargs["what"].startswith("asking for the privileges") else ():
            for one in entity.privAvailability:
                one.isGranted = one.privId not in ids
        return answer

    monkeypatch.setattr(Session, "call", answered)
