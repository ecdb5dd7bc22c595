"""A port layer that stores an image disk, for tests that kill it.

Arguments: PORT THUMBPRINT DIRECTORY WORK_DIR SOURCE [DATASTORE].
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from vsphere_simulator import HOST, Simulator

from portlayer.drivers.vsphere.datastore import VsphereDatastore
from portlayer.drivers.vsphere.endpoint import Credentials, Endpoint
from portlayer.drivers.vsphere.imported_disks import ImportSite
from portlayer.drivers.vsphere.session import Session


async def put(port: str, thumbprint: str, directory: str, work_dir: str, source: str, name: str = "LocalDS_0") -> None:
    endpoint = Endpoint(HOST, int(port), thumbprint=thumbprint)
    session = Session(endpoint, Credentials(Simulator.user, Simulator.password))
    await session.open()
    find = session.content.searchIndex.FindByInventoryPath
    datacenter = await session.call(find, "/DC0", what="looking")
    found = await session.call(find, f"/DC0/datastore/{name}", what="looking")
    pool = await session.call(find, "/DC0/host/DC0_C0/Resources", what="looking")
    folder = await session.call(find, "/DC0/vm", what="looking")
    site = ImportSite(pool, folder, any_host)
    datastore = VsphereDatastore(session, datacenter, found, directory, Path(work_dir), import_site=site)
    await datastore.open()
    await datastore.put_image_disk("one", Path(source))


async def any_host() -> None:
    """The simulator chooses."""


asyncio.run(put(*sys.argv[1:]))
