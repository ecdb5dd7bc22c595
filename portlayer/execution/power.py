"""Cutting the power of a container's VM, and knowing afterwards that this was by order."""

from __future__ import annotations

import logging

from portlayer.drivers.base import Machine
from portlayer.errors import UnavailableError

_log = logging.getLogger(__name__)


class Power:
    """Of one container's VM. `cut_by_order` tells of what was started last."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.cut_by_order = False

    async def cut(self, why: str) -> None:
        _log.warning("container %s: cutting the power of its VM: %s", self._machine.id[:12], why)
        self.cut_by_order = True
        await self._machine.power_off()

    def begin(self) -> None:
        """A start begins: nobody has ordered its end yet."""
        self.cut_by_order = False

    def require(self) -> None:
        """UnavailableError when it was cut while the container starts.

        Whoever removes it then has cut the power before there was any, or that of a clone: that is no reason to boot.
        """
        if self.cut_by_order:
            raise UnavailableError("the VM was switched off while it started")
