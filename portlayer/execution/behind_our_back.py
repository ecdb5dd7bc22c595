"""What happens to a container's machine without the container's doing: administrators, HA and DRS have a hand in it.

What the container itself ordered is told here as well, and is no news to it.
"""

from __future__ import annotations

import logging

from portlayer.drivers.base import Change, MachineChange
from portlayer.errors import PortLayerError
from portlayer.execution.container import Container

# Changes that leave a container as it is: events for people, by names that Docker does not use for anything else.
_ACTIONS = {
    Change.SWITCHED: "vm-power",
    Change.MIGRATED: "migrate",
    Change.FAILED_OVER: "failover",
    Change.QUESTION: "question",
    Change.ALARM: "alarm",
    Change.RENAMED: "vm-rename",
    Change.CONNECTION: "connection",
}
_log = logging.getLogger(__name__)


async def follow_change(container: Container, change: MachineChange) -> None:
    """Lets the container know; a failure is for the log, since nobody called."""
    try:
        if change.kind is Change.GONE:
            await container.machine_gone()
        elif change.kind is Change.POWERED_ON:
            await container.machine_powered_on()
        elif change.kind is Change.SUSPENDED:
            await container.machine_suspended()
        elif change.kind in _ACTIONS:
            container.emit(_ACTIONS[change.kind], change.attributes)
    except PortLayerError as error:
        _log.warning("container %s: its VM was %s: %s", container.id[:12], change.kind, error)
