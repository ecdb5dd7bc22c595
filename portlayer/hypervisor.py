"""The hypervisor that the settings name, opened: its driver and the datastore of image disks.

The one place outside `drivers/` that knows which there are.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from portlayer.config import Settings
from portlayer.drivers.base import Datastore, MachineDriver
from portlayer.identity import Identity
from portlayer.metrics import Metrics


@contextlib.asynccontextmanager
async def opened(settings: Settings, who: Identity, metrics: Metrics) -> AsyncIterator[tuple[MachineDriver, Datastore]]:
    """On leaving, connections are let go of; machines go on. Raises PortLayerError."""
    if settings.vsphere is None:
        from portlayer.drivers import qemu

        driver = qemu.QemuDriver(
            settings.state_dir, settings.guest_image, accelerator=settings.accelerator, channel=settings.channel
        )
        await driver.open()
        try:
            yield driver, qemu.LocalDatastore(settings.state_dir)
        finally:
            await driver.close()
        return
    from portlayer.drivers.vsphere import site_driver  # pyvmomi takes 70 ms and 26 MB to load

    async with site_driver.opened(
        settings.vsphere, who, settings.state_dir, settings.guest_image, on_call=metrics.vsphere_called
    ) as both:
        yield both
