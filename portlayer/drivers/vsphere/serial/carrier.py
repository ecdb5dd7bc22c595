"""What carries a VM's port: a connection from an ESXi host, as far as the port knows it."""

from __future__ import annotations

from typing import Protocol


class Connection(Protocol):
    """What the port tells it, and asks of it."""

    held: bytearray

    @property
    def is_blocked(self) -> bool:
        """Whether its host does not read what it is sent."""

    @property
    def unsent_bytes(self) -> int: ...

    def send_data(self, data: bytes) -> None: ...

    def send_go_ahead(self, cookie: bytes) -> None: ...

    def send_not_now(self, sequence: bytes) -> None: ...

    def send_peer_ok(self, cookie: bytes) -> None: ...

    def set_reading(self, reading: bool) -> None: ...

    def half_close(self) -> None:
        """Tells the host that nothing more will be sent."""

    def close(self) -> None:
        """Ends it; `Port.lost` will be told."""

    def belong(self) -> None:
        """It is the VM's from here on."""
