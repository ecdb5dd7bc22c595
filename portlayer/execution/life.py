"""What a container is, and the state that it is in: one record, stored with its machine, and events that tell of it.

What must survive is in the record. Whoever changes the state holds `Life.lock`; nothing here knows how a container is
run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace

from portlayer.drivers.base import Machine
from portlayer.errors import ConflictError, NotFoundError, PortLayerError
from portlayer.events import EventHub
from portlayer.execution import states
from portlayer.execution.run import Ended
from portlayer.execution.states import Action
from portlayer.v1 import record_pb2

_SAVE_RETRY_S = 1.0
_log = logging.getLogger(__name__)


class Life:
    """See the module's docstring."""

    def __init__(self, machine: Machine, record: record_pb2.ContainerRecord, events: EventHub) -> None:
        self.machine = machine
        self.record = record
        self.id = record.container.id
        self.short_id = self.id[:12]
        self.spec = record.container.spec
        self.state = record.container.state
        # Held only while something is changed, never while something is awaited that another operation may have to
        # bring about (the end of a run).
        self.lock = asyncio.Lock()
        # Done when nothing is left of it; with the end of its last run.
        self.removed: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self._removal: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        # Set while the end of its last run cannot be recorded, with the reason.
        self.unrecorded = asyncio.Event()
        self.unrecorded_because = ""
        self._events = events
        self._saving = asyncio.Lock()

    @property
    def name(self) -> str:
        return self.record.container.name

    @property
    def live(self) -> bool:
        """Whether a process of it exists."""
        return self.state.status in states.LIVE

    @property
    def active(self) -> bool:
        """Whether a process of it exists, or is about to."""
        return self.state.status in states.ACTIVE

    @property
    def paused(self) -> bool:
        return self.state.status == states.PAUSED

    def removal(self) -> asyncio.Future[Ended]:
        """Done when it is removed, as `removed`, or when the next attempt at that fails. Shield it."""
        return self.removed if self.removed.done() else self._removal

    def was_removed(self, last: Ended) -> None:
        """Tells those who wait for it how its last run ended."""
        self.removed.set_result(last)
        self._removal.set_result(last)

    def was_not_removed(self, last: Ended, error: PortLayerError) -> None:
        """Tells those who wait for an attempt; that there may be others is no reason to keep them."""
        self.state.error = f"removal failed: {error}"
        waited_for, self._removal = self._removal, asyncio.get_running_loop().create_future()
        words = f"container {self.short_id} ended with exit code {last.exit_code}, but is not removed yet: {error}"
        waited_for.set_result(replace(last, error=words))

    def move(self, action: Action) -> None:
        """Raises ConflictError when the state does not allow it."""
        self.state.status = states.move(self.state.status, action)

    def emit(self, action: str, attributes: Mapping[str, str] | None = None) -> None:
        """Records an event of this container."""
        own = {**self.spec.labels, "image": self.spec.image, "name": self.name}
        self._events.emit("container", action, self.id, {**own, **(attributes or {})})

    def require_live(self) -> None:
        """Raises ConflictError."""
        if self.state.status == states.RESTARTING:
            raise ConflictError(f"Container {self.id} is restarting, wait until the container is running")
        if not self.live:
            raise ConflictError(f"container {self.id} is not running")

    def require_usable(self) -> None:
        """Raises NotFoundError, ConflictError for one that is removed, or to be removed."""
        if self.removed.done():
            raise NotFoundError(f"No such container: {self.id}")
        if self.state.status in (states.REMOVING, states.DEAD):
            raise ConflictError("container is marked for removal and cannot be started")

    async def save(self) -> None:
        """Makes the record durable. Raises DriverError, ExhaustedError, NotFoundError."""
        # An exit is saved beside operations: one at a time, so that the newest state is what stays.
        async with self._saving:
            await self.machine.write_record(self.record.SerializeToString())

    async def save_surely(self) -> None:
        """An exit must be durable before the agent may forget it; a full disk only delays that."""
        warned = False
        while not self.removed.done():
            try:
                await self.save()
                self.unrecorded.clear()
                return
            except NotFoundError:
                return
            except PortLayerError as error:
                self.unrecorded_because = str(error)
                self.unrecorded.set()
                if not warned:
                    _log.error("the exit of container %s is not recorded yet: %s", self.id, error)
                    warned = True
                await asyncio.sleep(_SAVE_RETRY_S)
