"""The server that ESXi hosts dial, and the port layer's way to its VMs' serial ports.

    concentrator = Concentrator("10.0.0.5", 2377, tls=context)
    await concentrator.open()
    concentrator.serve()
    concentrator.admit(vc_uuid, token)          # the VM's port: serviceURI vch://TOKEN, proxyURI concentrator.uri
    reader, writer = await concentrator.connect(vc_uuid)

It keeps no state that must survive: after a restart the driver admits again what its inventory has, and the hosts dial
again (they keep trying, with the address in the VM's configuration, which therefore has to stay the same). They are
sooner than the driver, and one that is refused may not come back: hence `serve` is for when all VMs are admitted.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from typing import Final

from portlayer.drivers.vsphere.serial.admission import Admissions
from portlayer.drivers.vsphere.serial.entrance import Entrance
from portlayer.errors import DriverError, InvalidArgumentError

# As many as may dial at once when a cluster comes back.
_BACKLOG: Final = 1024


class Concentrator:
    """See the module's docstring. All times in seconds.

    `host` and `port` (0: any) are where it listens, `advertise` the name or address that hosts reach it by, needed when
    `host` is a wildcard. `identify_s`: how long a connection may take to say whom it speaks for; at most
    `max_unidentified` may be about it at once, or some have to go (see entrance.py). `vmotion_s`: how long a user's
    bytes are held back for a vMotion's destination; the VM stands still meanwhile, and vSphere gives that 100 s.
    `drain_s`: how long the last bytes of a vMotion's source may be on their way.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        advertise: str | None = None,
        identify_s: float = 30.0,
        max_unidentified: int = 1024,
        vmotion_s: float = 120.0,
        drain_s: float = 2.0,
    ) -> None:
        if advertise is None and _is_wildcard(host):
            raise InvalidArgumentError(
                f"the serial concentrator listens on {host or 'every address'}: "
                "say by which name or address ESXi hosts reach it"
            )
        self._host = host
        self._wanted_port = port
        self._tls = tls
        self._advertised = advertise or host
        self._admissions = Admissions(vmotion_s=vmotion_s, drain_s=drain_s)
        self._entrance = Entrance(self._admissions, tls=tls, identify_s=identify_s, max_unidentified=max_unidentified)
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None

    # --- life

    async def open(self) -> None:
        """Begins to listen; who dials waits until `serve`. Raises DriverError when it cannot."""
        loop = asyncio.get_running_loop()
        try:
            addresses = await loop.getaddrinfo(self._host or None, self._wanted_port, type=socket.SOCK_STREAM)
            family, _, _, _, address = addresses[0]
            self._listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
        except OSError as error:
            raise DriverError(
                f"the serial concentrator cannot listen on {self._host}:{self._wanted_port}: {error.strerror or error};"
                " each VCH of a machine needs a --serial-listen of its own"
            ) from error
        self._listener.setblocking(False)

    def serve(self) -> None:
        """Begins to take connections in, those that wait already first."""
        if self._listener is None:
            raise DriverError("the serial concentrator is not open")
        self._accepting = asyncio.create_task(self._entrance.serve(self._listener), name="serial concentrator")

    async def close(self) -> None:
        """Ends all connections and streams; whoever waits in `connect` gets DriverError."""
        if self._accepting is not None:
            self._accepting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._accepting
            self._accepting = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self._admissions.dismiss_all()
        await self._entrance.close()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens, with the port it has got."""
        if self._listener is None:
            raise DriverError("the serial concentrator is not open")
        host, port = self._listener.getsockname()[:2]
        return host, port

    @property
    def uri(self) -> str:
        """The proxyURI for VMs."""
        scheme = "telnets" if self._tls is not None else "telnet"
        host = f"[{self._advertised}]" if ":" in self._advertised else self._advertised
        return f"{scheme}://{host}:{self.address[1]}"

    # --- who may dial in

    def admit(self, vc_uuid: str, token: str) -> None:
        """Lets a VM dial in, by one more token (see admission.py). Raises InvalidArgumentError."""
        self._admissions.admit(vc_uuid, token)

    def revoke(self, vc_uuid: str, token: str) -> None:
        """Takes one token back; a VM that has dialled in by it stays connected."""
        self._admissions.revoke(vc_uuid, token)

    def dismiss(self, vc_uuid: str) -> None:
        """Takes back all that a VM was admitted by and ends its connections."""
        self._admissions.dismiss(vc_uuid)

    # --- the streams

    async def connect(self, vc_uuid: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The bytes of a VM's port, as soon as it has dialled in; the stream of whoever connected before ends.

        The stream also ends when the VM's connection does, but not by a vMotion. What the VM says while nobody is
        connected is lost. Raises DriverError when the VM is not admitted, or not any more.
        """
        port = self._admissions.port(vc_uuid)
        await port.wait_connected()
        user = port.attach()
        return user.reader, user.writer

    def is_connected(self, vc_uuid: str) -> bool:
        """Whether the VM has dialled in. Raises DriverError when it is not admitted."""
        return self._admissions.port(vc_uuid).is_connected

    async def wait_connected(self, vc_uuid: str) -> None:
        """Returns when the VM has dialled in. Raises DriverError as `connect`."""
        await self._admissions.port(vc_uuid).wait_connected()

    async def wait_disconnected(self, vc_uuid: str) -> None:
        """Returns when the VM is not connected, at once if so: mostly it was powered off. Raises DriverError."""
        await self._admissions.port(vc_uuid).disconnected.wait()


def _is_wildcard(host: str) -> bool:
    try:
        return not host or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
