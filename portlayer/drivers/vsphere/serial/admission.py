"""Which VMs may dial in, and by which token: the serviceURI of a VM's port is `vch://TOKEN`.

A VM is addressed by its VC UUID (`config.instanceUuid`), and the token is what proves it. A VM may be admitted by some
tokens, and a token may admit several VMs: an instant clone dials with the token of its parent, whose configuration it
inherits, until it is given its own. Only digests are kept, and compared as such, so that the time of an answer tells
nothing about tokens.
"""

from __future__ import annotations

import hashlib
import re

from portlayer.drivers.vsphere.serial.extension import SERVICE_SCHEME, normal_uuid
from portlayer.drivers.vsphere.serial.migration import Migrations
from portlayer.drivers.vsphere.serial.port import Port
from portlayer.errors import DriverError, InvalidArgumentError

_TOKEN = re.compile(r"[0-9a-f]{32}")


class Admissions:
    """See the module's docstring. Times in seconds, as Port's."""

    def __init__(self, *, vmotion_s: float, drain_s: float) -> None:
        self.migrations: Migrations[Port] = Migrations()
        self._vmotion_s = vmotion_s
        self._drain_s = drain_s
        self._ports: dict[str, Port] = {}
        self._tokens: dict[str, set[bytes]] = {}

    def admit(self, vc_uuid: str, token: str) -> None:
        """Adds a token of a VM. Raises InvalidArgumentError when either has no proper form."""
        if not _TOKEN.fullmatch(token):
            raise InvalidArgumentError("a token of the serial concentrator is 32 hexadecimal digits")
        vc_uuid = _normal(vc_uuid)
        if vc_uuid not in self._ports:
            self._ports[vc_uuid] = Port(vc_uuid, self.migrations, vmotion_s=self._vmotion_s, drain_s=self._drain_s)
            self._tokens[vc_uuid] = set()
        self._tokens[vc_uuid].add(_digest(token))

    def revoke(self, vc_uuid: str, token: str) -> None:
        """Takes one token away; a connection that came by it stays. No effect when there is none."""
        self._tokens.get(_normal(vc_uuid), set()).discard(_digest(token))

    def dismiss(self, vc_uuid: str) -> None:
        """Takes all tokens of a VM away and ends its connections and its user's stream. No effect when it has none."""
        vc_uuid = _normal(vc_uuid)
        self._tokens.pop(vc_uuid, None)
        port = self._ports.pop(vc_uuid, None)
        if port is not None:
            port.dismiss()

    def dismiss_all(self) -> None:
        """Dismisses every VM."""
        for vc_uuid in list(self._ports):
            self.dismiss(vc_uuid)

    def port(self, vc_uuid: str) -> Port:
        """A VM's port. Raises DriverError when it is not admitted."""
        port = self._ports.get(_normal(vc_uuid))
        if port is None:
            raise DriverError(f"VM {vc_uuid} is not admitted to the serial concentrator")
        return port

    def check(self, uri: str, vc_uuid: str | None) -> Port | None:
        """The port that a VM may have which dials in with this serviceURI; None when it is none of ours.

        When the host does not tell the VM's UUID, the token has to be of a single VM.
        """
        if not uri.startswith(SERVICE_SCHEME):
            return None
        # Some versions of the vSphere Client add the slash that ends a URI's authority.
        digest = _digest(uri.removeprefix(SERVICE_SCHEME).removesuffix("/"))
        if vc_uuid is not None:
            return self._ports.get(vc_uuid) if digest in self._tokens.get(vc_uuid, ()) else None
        owners = [owner for owner, tokens in self._tokens.items() if digest in tokens]
        return self._ports[owners[0]] if len(owners) == 1 else None


def _normal(vc_uuid: str) -> str:
    try:
        return normal_uuid(vc_uuid)
    except ValueError as error:
        raise InvalidArgumentError(str(error)) from error


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
