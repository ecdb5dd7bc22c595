"""Making a VM once, however often it takes: answers get lost, and tasks that end in an error may have done it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from portlayer.drivers.vsphere import operations
from portlayer.drivers.vsphere.faults import TRANSPORT_ERRORS, TaskLostError, caused_by
from portlayer.drivers.vsphere.session import Session
from portlayer.errors import AlreadyExistsError, DriverError, PortLayerError

_ATTEMPTS = 3


async def made(
    session: Session,
    begin: Callable[[], Awaitable[Any]],
    find: Callable[[], Awaitable[Any]],
    remove: Callable[[Any], Awaitable[None]],
    *,
    entity: Any,
    what: str,
) -> Any:
    """The VM that `begin` makes; on any failure nothing is left of it, as far as vSphere can be asked.

    `find` gives the VM that an attempt of ours made, or None: by something that no other VM has; `remove` removes it.
    `entity` is what vSphere keeps the task of making with.
    """
    for _ in range(_ATTEMPTS):
        try:
            return await begin()
        except PortLayerError as error:
            if caused_by(error, *TRANSPORT_ERRORS):
                raise  # the session has tried for long: there is nobody to ask
            # Either an attempt of ours did it and its answer was lost, or somebody has a VM of that name.
            lost = isinstance(error, AlreadyExistsError | TaskLostError)
            await operations.settled(session, entity)
            vm = await find()
            if vm is not None and lost:
                return vm
            if vm is not None:
                await operations.quietly(remove(vm), f"{what}: clearing up")
            if not isinstance(error, TaskLostError):
                raise
    raise DriverError(f"{what}: vSphere forgets what it was asked")
