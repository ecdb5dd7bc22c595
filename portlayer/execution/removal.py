"""Removing a container: for whoever asks, who hears of a failure; or in the background, again and again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator

from portlayer.errors import ConflictError, ExhaustedError, NotFoundError, PortLayerError
from portlayer.execution import states
from portlayer.execution.current_run import CurrentRun
from portlayer.execution.ending import SIGKILL, Ending
from portlayer.execution.host import Host
from portlayer.execution.life import Life
from portlayer.execution.power import Power
from portlayer.execution.states import Action

# Between attempts that nobody waits for; each of them has been tried for some time by the driver.
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
# So long a hypervisor may be away; what cannot be removed by then is for people to look at.
GIVE_UP_S = 7 * 24 * 3600.0
_log = logging.getLogger(__name__)


class Removal:
    """Of one container."""

    def __init__(self, host: Host, life: Life, *, current: CurrentRun, power: Power, ending: Ending) -> None:
        self._host = host
        self._life = life
        self._current = current
        self._power = power
        self._ending = ending
        self._background: asyncio.Task[None] | None = None

    async def remove(self, *, force: bool) -> None:
        """Destroys machine, disks and log. Raises ConflictError when it runs and `force` is not set."""
        if force and self._life.state.status == states.STARTING:
            await self._power.cut("it is removed while it starts")  # else a guest that hangs would be waited for
        if force and self._life.active:
            with contextlib.suppress(ConflictError):
                await self._ending.kill(SIGKILL)
        await self._host.tasks.finish(self._remove(), f"remove {self._life.short_id}")

    def begin(self, *, force: bool = False) -> None:
        """As `remove`, in the background and until it is gone. No effect while that is under way."""
        if self._background is None or self._background.done():
            work = self._until_gone(force=force)
            self._background = self._host.tasks.spawn(work, f"remove {self._life.short_id} in the background")

    async def _until_gone(self, *, force: bool) -> None:
        life, told = self._life, ""
        for pause_s in pauses_s():
            try:
                return await self.remove(force=force)
            except PortLayerError as error:
                if life.active and not force:
                    return  # somebody has started it: the end of that run begins another removal
                if told != (told := str(error)):
                    _log.warning("container %s cannot be removed, which is tried again and again: %s", life.id, error)
            await asyncio.wait([life.removed], timeout=pause_s)
            if life.removed.done():
                return  # by somebody else
        _log.error("container %s could not be removed for too long, and is left as it is", life.id)

    async def _remove(self) -> None:
        life = self._life
        async with life.lock:
            if life.removed.done():
                return
            self._require_idle()
            life.move(Action.REMOVE)
            try:
                # Noted so that a removal cut short is finished later; on a full disk, or when somebody else has removed
                # the machine, removing is what matters.
                with contextlib.suppress(ExhaustedError, NotFoundError):
                    await life.save()
                self._current.log.close()
                await self._host.driver.destroy(life.machine)
            except PortLayerError as error:
                life.move(Action.REMOVE_FAILED)
                life.was_not_removed(self._current.last, error)
                raise
            life.emit("destroy")
            life.was_removed(self._current.last)
            self._current.output.end_run()
            self._current.log.notify()

    def _require_idle(self) -> None:
        status = self._life.state.status
        if status in states.ACTIVE:
            what = " and must be unpaused first"
            if status != states.PAUSED:
                what = ": stop the container before removing or force remove"
            name, word = self._life.name, states.word(status)
            raise ConflictError(f'cannot remove container "/{name}": container is {word}{what}')


def pauses_s() -> Iterator[float]:
    """Seconds between attempts: more and more up to a minute, and an end."""
    pause_s, paused_s = FIRST_PAUSE_S, 0.0
    while paused_s < GIVE_UP_S:
        yield pause_s
        paused_s += pause_s
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
