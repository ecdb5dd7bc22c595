"""Sessions of ours with the simulator."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

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
