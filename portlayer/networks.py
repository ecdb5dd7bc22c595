"""The networks of a VCH: "none", which is loopback alone, and those that its driver has.

A container has a network card on each of its networks. Nothing here gives addresses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from portlayer.errors import InvalidArgumentError, NotFoundError

LOOPBACK_ONLY = "none"
BRIDGE = "bridge"
# A VM has room for so many network cards on vSphere; no other hypervisor is to allow more.
MAX_CARDS = 10


@dataclass(frozen=True)
class Network:
    """`id`: 64 hexadecimal digits, a function of VCH and name, so that it stays. `description` is for people."""

    id: str
    name: str
    driver: str
    description: str = ""


class Networks:
    """What containers can be on. `networks` is MachineDriver.networks, `hypervisor` the driver's name."""

    def __init__(self, vch_id: str, hypervisor: str, networks: Mapping[str, str]) -> None:
        known = {LOOPBACK_ONLY: Network(_id(vch_id, LOOPBACK_ONLY), LOOPBACK_ONLY, "null")}
        for name, description in networks.items():
            kind = "bridge" if name == BRIDGE else hypervisor
            known[name] = Network(_id(vch_id, name), name, kind, description)
        self._known = known

    def all(self) -> list[Network]:
        return list(self._known.values())

    def find(self, reference: str) -> Network:
        """By name, id or unique prefix of the id. Raises NotFoundError, InvalidArgumentError (ambiguous)."""
        if found := self._known.get(reference):
            return found
        matches = [network for network in self._known.values() if reference and network.id.startswith(reference)]
        if len(matches) > 1:
            raise InvalidArgumentError(f"multiple networks found with provided prefix: {reference}")
        if not matches:
            raise NotFoundError(f"network {reference} not found: there are {', '.join(self._known)}")
        return matches[0]

    def choose(self, references: Iterable[str]) -> list[Network]:
        """The networks of a container that asked for `references`; never empty.

        Raises NotFoundError, InvalidArgumentError.
        """
        chosen = list(dict.fromkeys(self.find(reference) for reference in references))
        if not chosen:
            return [self._known.get(BRIDGE, self._known[LOOPBACK_ONLY])]
        if len(chosen) > 1 and self._known[LOOPBACK_ONLY] in chosen:
            raise InvalidArgumentError(f"a container on the network {LOOPBACK_ONLY} cannot be on others")
        if len(chosen) > MAX_CARDS:
            raise InvalidArgumentError(f"a container has room for {MAX_CARDS} network cards, not for {len(chosen)}")
        return chosen


def cards(networks: Iterable[Network]) -> tuple[str, ...]:
    """MachineSpec.networks: what the machine's cards are on."""
    return tuple(network.name for network in networks if network.name != LOOPBACK_ONLY)


def _id(vch_id: str, name: str) -> str:
    return hashlib.sha256(f"{vch_id}/{name}".encode()).hexdigest()
