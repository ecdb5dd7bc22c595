"""By which address ESXi hosts reach this machine, as far as that can be known from here."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from typing import Any

from portlayer.drivers.vsphere.endpoint import Endpoint
from portlayer.errors import DriverError


def address_facing(endpoint: Endpoint) -> str:
    """This machine's address on the way to vSphere, where its hosts usually are too. Sends nothing. Blocks.

    DriverError when there is no way.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise DriverError(
            f"it cannot be told by which address ESXi reaches this machine ({error}): say so with --serial-address"
        ) from error


def addresses_of(host: str) -> list[str]:
    """All addresses of a name. Blocks. DriverError when it has none."""
    try:
        return sorted({str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)})
    except OSError as error:
        raise DriverError(f"{host} has no address: {error}") from error


def may_listen(host: str, port: int) -> str:
    """Why this address cannot be listened on; empty when it can. Blocks."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return str(error.strerror or error)
    return ""


def is_neighbour(addresses: Iterable[str], interfaces: Iterable[Any]) -> bool:
    """Whether one of the addresses is in the subnet of one of a host's interfaces (vim.host.VirtualNic)."""
    known = [ipaddress.ip_address(address.partition("%")[0]) for address in addresses]
    for interface in interfaces:
        spec = getattr(getattr(interface, "spec", None), "ip", None)
        if spec is None or not spec.ipAddress or not spec.subnetMask:
            continue
        try:
            network = ipaddress.ip_network(f"{spec.ipAddress}/{spec.subnetMask}", strict=False)
        except ValueError:
            continue
        if any(address in network for address in known):
            return True
    return False


def lets_through(allowed: Any, address: str) -> bool:
    """Whether a firewall's list (vim.host.Ruleset.IpList) has an address; a list that is not there has all."""
    if allowed is None or allowed.allIp:
        return True
    wanted = ipaddress.ip_address(address.partition("%")[0])
    networks = [f"{one.network}/{one.prefixLength}" for one in allowed.ipNetwork or ()]
    for text in (*(allowed.ipAddress or ()), *networks):
        try:
            if wanted in ipaddress.ip_network(text, strict=False):
                return True
        except ValueError:
            continue
    return False
