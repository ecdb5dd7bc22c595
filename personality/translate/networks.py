"""A container's networks: out of what a client asks for, and as Docker's API describes them."""

from __future__ import annotations

from typing import Any

from personality.errors import DockerError, NotServed
from personality.translate.bodies import ContainerBody, HostConfig, NetworkingConfig
from portlayer.v1 import types_pb2

LOOPBACK = "none"
BRIDGE = "bridge"
# What clients send who leave it to the host. "bridge" is one of them: where there is no bridge network, it is loopback.
_DEFAULTS = frozenset({"", "default", BRIDGE})
_NO_ADDRESSES = "choosing addresses is not served yet: nothing gives a container's network cards addresses so far"


def wanted_networks(body: ContainerBody, host: HostConfig) -> list[str]:
    """Names or ids for ContainerSpec.networks, the one of NetworkMode first; empty for the host's default.

    Raises DockerError.
    """
    mode = host.network_mode or ""
    if mode == "host" or mode.startswith("container:"):
        raise DockerError(400, f"network {mode} cannot be joined: a container is a VM of its own")
    _refuse_addresses(body)
    if body.network_disabled:
        return [LOOPBACK]
    asked = list((body.networking_config or NetworkingConfig()).endpoints_config or {})
    # Clients name the endpoints of all networks, or of the further ones alone; a default mode beside them says nothing.
    first = [mode] if mode not in _DEFAULTS or not asked or mode in asked else []
    names = dict.fromkeys(BRIDGE if name in _DEFAULTS else name for name in first + asked)
    return [] if list(names) == [BRIDGE] else list(names)


def _refuse_addresses(body: ContainerBody) -> None:
    if body.mac_address:
        raise NotServed(_NO_ADDRESSES)
    for name, endpoint in ((body.networking_config or NetworkingConfig()).endpoints_config or {}).items():
        if name == "host":
            raise DockerError(400, f"network {name} cannot be joined: a container is a VM of its own")
        if endpoint and (endpoint.mac_address or any((endpoint.ipam_config or {}).values())):
            raise NotServed(_NO_ADDRESSES)


def endpoints(container: types_pb2.Container) -> dict[str, dict[str, Any]]:
    """NetworkSettings.Networks."""
    # Containers of an earlier version have none in their record: they have loopback alone.
    return {one.network: _endpoint(one.network_id) for one in container.endpoints} or {LOOPBACK: _endpoint("")}


def network_mode(container: types_pb2.Container, said: dict[str, Any]) -> str:
    """HostConfig.NetworkMode: as the client named it, else the container's first network."""
    asked = (said.get("HostConfig") or {}).get("NetworkMode")
    return str(asked or next(iter(endpoints(container))))


def is_on(container: types_pb2.Container, reference: str) -> bool:
    """Whether it is on the network of that name or id."""
    networks = endpoints(container)
    return reference in networks or any(one["NetworkID"] == reference for one in networks.values() if reference)


def _endpoint(network_id: str) -> dict[str, Any]:
    """EndpointSettings; there are no addresses yet."""
    return {
        "IPAMConfig": None,
        "Links": None,
        "Aliases": None,
        "DriverOpts": None,
        "DNSNames": None,
        "MacAddress": "",
        "GwPriority": 0,
        "NetworkID": network_id,
        "EndpointID": "",
        "Gateway": "",
        "IPAddress": "",
        "IPPrefixLen": 0,
        "IPv6Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
    }
