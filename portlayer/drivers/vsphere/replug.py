"""When the serial port of a VM that does not dial is plugged in again.

That mends a port which vSphere left unplugged, at the first time. When no host reaches the concentrator, a firewall
being in between, it mends nothing, and costs vCenter two tasks and the VM's history as many entries each time, for all
VMs at once: so each time in vain makes the next one wait twice as long.
"""

from __future__ import annotations

import time
from typing import Final

_FIRST_WAIT_S: Final = 120.0
_LONGEST_WAIT_S: Final = 3600.0


class Replug:
    """Of one VM."""

    def __init__(self) -> None:
        self._wait_s = _FIRST_WAIT_S
        self._not_before = 0.0

    @property
    def is_due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() >= self._not_before

    def done(self) -> None:
        """The port was plugged in."""
        self._not_before = time.monotonic() + self._wait_s
        self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)

    def dialled(self) -> None:
        """The VM has dialled: whatever comes is new."""
        self._wait_s, self._not_before = _FIRST_WAIT_S, 0.0
