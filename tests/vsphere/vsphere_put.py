"""A port layer that stores an image disk, for tests that kill it: PORT THUMBPRINT DIRECTORY WORK_DIR SOURCE."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from vsphere_simulator import HOST, Simulator

from portlayer.drivers.vsphere.datastore import VsphereDatastore
from portlayer.drivers.vsphere.endpoint import Credentials, Endpoint
from portlayer.drivers.vsphere.session import Session


async def put(port: str, thumbprint: str, directory: str, work_dir: str, source: str) -> None:
    endpoint = Endpoint(HOST, int(port), thumbprint=thumbprint)
    session = Session(endpoint, Credentials(Simulator.user, Simulator.password))
    await session.open()
    find = session.content.searchIndex.FindByInventoryPath
    datacenter = await session.call(find, "/DC0", what="looking")
    found = await session.call(find, "/DC0/datastore/LocalDS_0", what="looking")
    datastore = VsphereDatastore(session, datacenter, found, directory, Path(work_dir))
    await datastore.open()
    await datastore.put_image_disk("one", Path(source))


asyncio.run(put(*sys.argv[1:]))
