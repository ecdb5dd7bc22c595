"""What happens to a container's machine without the container's doing: administrators, HA and DRS have a hand in it.

What the container itself ordered is told here as well, and is no news to it.
"""

from __future__ import annotations

import logging

from portlayer.drivers.base import Change, MachineChange, PowerState
from portlayer.errors import PortLayerError
from portlayer.execution import states
from portlayer.execution.container import Container
from portlayer.execution.states import Action

# Changes that leave a container as it is: events for people, by names that Docker does not use for anything else.
_ACTIONS = {
    Change.SWITCHED: "vm-power",
    Change.MIGRATED: "migrate",
    Change.FAILED_OVER: "failover",
    Change.QUESTION: "question",
    Change.ALARM: "alarm",
    Change.RENAMED: "vm-rename",
    Change.MOVED: "vm-move",
    Change.CONNECTION: "connection",
}
_log = logging.getLogger(__name__)


async def follow_change(container: Container, change: MachineChange) -> None:
    """Lets the container know; a failure is for the log, since nobody called."""
    try:
        if change.kind is Change.GONE:
            await _gone(container)
        elif change.kind is Change.POWERED_ON:
            await _powered_on(container)
        elif change.kind is Change.SUSPENDED:
            await _suspended(container)
        elif change.kind in _ACTIONS:
            container.emit(_ACTIONS[change.kind], change.attributes)
    except PortLayerError as error:
        _log.warning("container %s: its VM was %s: %s", container.id[:12], change.kind, error)


async def _gone(container: Container) -> None:
    """Somebody removed the VM: the container is no more, and its log with it."""
    if not container.removed.done() and container.state.status != states.REMOVING:
        _log.warning("container %s: its VM was removed by somebody else", container.id[:12])
        await container.halt()
        container.begin_removal(force=True)


async def _powered_on(container: Container) -> None:
    """Somebody switched the VM on, or let it go on: that starts, or unpauses, the container."""
    life = container.life
    async with life.lock:
        if life.paused and await life.machine.power_state() is PowerState.RUNNING:
            life.move(Action.RESUME)
            await life.save()
            life.emit("unpause", {"reason": "the VM was resumed"})
            return
        if life.active or life.removed.done() or not container.settled.is_set():
            return
        # Told late of a power-on of our own, the run of which is over: then it is off.
        if await life.machine.power_state() is not PowerState.RUNNING:
            return
    _log.info("container %s is started, since its VM was powered on", life.short_id)
    await container.start()


async def _suspended(container: Container) -> None:
    """Somebody suspended the VM: the container is paused."""
    life = container.life
    async with life.lock:
        if life.state.status != states.RUNNING or await life.machine.power_state() is not PowerState.PAUSED:
            return
        life.move(Action.PAUSE)
        await life.save()
        life.emit("pause", {"reason": "the VM was suspended"})
