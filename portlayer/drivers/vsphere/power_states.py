"""Power states, asked for together: a port layer that finds hundreds of VMs asks for all of them in a few calls.

Whoever asks while a call is under way is answered by the next one, so no answer is older than its question.
"""

from __future__ import annotations

import asyncio
from typing import Any

from portlayer.drivers.base import PowerState
from portlayer.drivers.vsphere import operations
from portlayer.drivers.vsphere.session import Session
from portlayer.errors import NotFoundError


class PowerStates:
    """Of the VMs of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._asked: dict[Any, asyncio.Future[PowerState | None]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def of(self, vm: Any, name: str) -> PowerState:
        """Raises NotFoundError when the VM is gone, and what the session raises."""
        answer = self._asked.setdefault(vm, asyncio.get_running_loop().create_future())
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        if (state := await asyncio.shield(answer)) is None:
            raise NotFoundError(f"the VM {name} does not exist any more")
        return state

    async def _ask(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, {}
            try:
                found = await self._read(list(asked))
            except Exception as error:  # whatever it is, it is for those who wait
                for answer in asked.values():
                    answer.set_exception(error)
                    answer.exception()  # nobody may be waiting any more
            else:
                for vm, answer in asked.items():
                    answer.set_result(found.get(vm))
        self._asking = None

    async def _read(self, vms: list[Any]) -> dict[Any, PowerState]:
        try:
            return await operations.power_states(self._session, vms)
        except NotFoundError:
            if len(vms) == 1:
                return {}
        # One that has just gone is nothing to the others.
        return {vm: state for one in vms for vm, state in (await self._read([one])).items()}
