"""Sessions of ours with the simulator."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from vsphere_front import Front
from vsphere_simulator import HOST, Simulator
from vsphere_trouble import held

from portlayer.drivers.vsphere.endpoint import Credentials, Endpoint
from portlayer.drivers.vsphere.session import Session

_CHILD = Path(__file__).with_name("vsphere_put.py")


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


@contextlib.asynccontextmanager
async def through(front: Front) -> AsyncIterator[Session]:
    """As `opened`, through a front, and with little patience."""
    simulator = front.simulator
    endpoint = Endpoint(HOST, front.port, thumbprint=simulator.thumbprint)
    session = Session(endpoint, Credentials(simulator.user, simulator.password), delays_s=(0.01, 0.01, 0.01))
    await session.open()
    try:
        yield session
    finally:
        await session.close()


async def killed(front: Front, step: str, *arguments: str) -> None:
    """Has a port layer of its own store an image disk (vsphere_put.py), and kills it when it comes to a step."""
    held_up = front.inject(step, held(threading.Event()))
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, str(_CHILD), str(front.port), front.simulator.thumbprint, *arguments)
    )
    try:
        await asyncio.to_thread(held_up.hit.wait)
    finally:
        child.kill()
        await child.wait()
    front.clear()
