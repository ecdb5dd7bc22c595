"""A VCH's driver on vSphere with all that it stands on, from the login to the concentrator."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

from portlayer.drivers import guest_image as guest_images
from portlayer.drivers.vsphere import files, hosts, placement, reach
from portlayer.drivers.vsphere.datastore import VsphereDatastore
from portlayer.drivers.vsphere.driver import VsphereDriver
from portlayer.drivers.vsphere.endpoint import Endpoint
from portlayer.drivers.vsphere.imported_disks import ImportSite
from portlayer.drivers.vsphere.serial import Concentrator
from portlayer.drivers.vsphere.session import Session
from portlayer.drivers.vsphere.settings import SerialSettings, VsphereSettings
from portlayer.drivers.vsphere.stub import OnCall
from portlayer.errors import InvalidArgumentError
from portlayer.identity import Identity


@contextlib.asynccontextmanager
async def opened(
    settings: VsphereSettings, who: Identity, state_dir: Path, guest_image: Path, *, on_call: OnCall | None = None
) -> AsyncIterator[tuple[VsphereDriver, VsphereDatastore]]:
    """On leaving, connections are closed; VMs go on."""
    image = guest_images.read(guest_image, "vmware")
    name = placement.own_name(who.lasting_name, who.id)
    async with contextlib.AsyncExitStack() as stack:
        session = Session(settings.endpoint, settings.credentials, on_call=on_call)
        await session.open()
        stack.push_async_callback(session.close)
        lines = await _concentrator(settings.serial, settings.endpoint)
        await lines.open()  # a port that is taken is found out before anything is made
        stack.push_async_callback(lines.close)
        place = await placement.establish(session, settings, name)
        datastore = VsphereDatastore(
            *(session, place.datacenter, place.image_datastore, name, state_dir / "vsphere"),
            import_site=ImportSite(
                place.resource_pool, place.folder, functools.partial(hosts.for_new_vm, session, place.site)
            ),
        )
        await datastore.open()
        stack.push_async_callback(datastore.close)
        driver = VsphereDriver(
            session,
            place,
            datastore,
            lines,
            image,
            disk_place=await files.find(session, place.datacenter, place.datastore),
            proxy_uri=_proxy_uri(lines, settings.serial),
            state_dir=state_dir,
            vch_name=who.name,
            vm_name_template=settings.vm_name_template,
        )
        await driver.open()
        stack.push_async_callback(driver.close)
        lines.serve()  # not before the driver knows whose VMs may dial
        yield driver, datastore


async def _concentrator(settings: SerialSettings, endpoint: Endpoint) -> Concentrator:
    advertised = settings.advertised_host or await asyncio.to_thread(reach.address_facing, endpoint)
    return Concentrator(settings.listen_host, settings.listen_port, tls=_tls(settings), advertise=advertised)


def _tls(settings: SerialSettings) -> ssl.SSLContext | None:
    if settings.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.certificate, settings.key)
    except (OSError, ssl.SSLError) as error:
        raise InvalidArgumentError(f"--serial-tls-cert {settings.certificate} cannot be used: {error}") from error
    return context


def _proxy_uri(lines: Concentrator, settings: SerialSettings) -> str:
    """Where serial ports dial: the concentrator's own address, unless another port is forwarded to it."""
    if settings.advertised_port is None:
        return lines.uri
    return f"{lines.uri.rpartition(':')[0]}:{settings.advertised_port}"
