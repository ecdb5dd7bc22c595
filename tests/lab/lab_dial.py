"""How ESXi connects a network serial port: by telnet with VMware's extension, to the proxy that the port names."""

from __future__ import annotations

import ssl
from urllib.parse import urlsplit

from lab_hardware import Hardware, NetworkPort
from lab_port import Call, Dial
from vsphere_esxi_port import EsxiPort, Refused


def dial_as_esxi(hardware: Hardware) -> Dial:
    """For the ports of one VM."""

    async def dial(port: NetworkPort) -> Call:
        to = urlsplit(port.proxy_uri)
        if to.hostname is None or to.port is None:
            raise ConnectionError(f"{port.proxy_uri} names no proxy")
        call = EsxiPort(
            to.hostname,
            to.port,
            port.service_uri,
            hardware.instance_uuid,
            hardware.name,
            tls=_believing() if to.scheme == "telnets" else None,
        )
        try:
            await call.open()
        except Refused as error:
            await call.close()
            raise ConnectionError(f"refused: {error}") from error
        except BaseException:
            await call.close()
            raise
        return call

    return dial


def _believing() -> ssl.SSLContext:
    """An ESXi host does not check whose certificate a proxy shows unless it was told to."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
