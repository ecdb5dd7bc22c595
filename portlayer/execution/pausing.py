"""Freezing a container's VM, and letting it go on."""

from __future__ import annotations

from portlayer.errors import ConflictError
from portlayer.execution.life import Life
from portlayer.execution.states import Action


async def pause(life: Life) -> None:
    """Raises ConflictError."""
    async with life.lock:
        life.require_live()
        if life.paused:
            raise ConflictError(f"Container {life.id} is already paused")
        await life.machine.pause()
        life.move(Action.PAUSE)
        await life.save()
        life.emit("pause")


async def resume(life: Life) -> None:
    """Raises ConflictError."""
    async with life.lock:
        if not life.paused:
            raise ConflictError(f"Container {life.id} is not paused")
        await wake(life)
        await life.save()
        life.emit("unpause")


async def wake(life: Life) -> None:
    """Lets it go on if it is paused, so that it can end; the caller holds the lock, and saves."""
    if life.paused:
        await life.machine.resume()
        life.move(Action.RESUME)
