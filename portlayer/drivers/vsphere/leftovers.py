"""What could not be removed when nobody needed it any more.

vSphere may still write to it for somebody who is gone. It is tried again at the next occasion, or when the next port
layer starts.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from portlayer.errors import PortLayerError

_log = logging.getLogger(__name__)


class Leftovers:
    """Of one kind, by name: `kind` is what a name is in the log; `remove` has no effect when the thing is gone."""

    def __init__(self, kind: str, remove: Callable[[str], Awaitable[None]]) -> None:
        self._kind = kind
        self._remove = remove
        self._names: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """Whether it stayed."""
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)

    async def remove(self, name: str) -> None:
        """Now, or later."""
        try:
            await self._remove(name)
            self._names.discard(name)
        except PortLayerError as error:
            _log.warning("%s %s stays for now: %s", self._kind, name, error)
            self._names.add(name)

    def add(self, name: str) -> None:
        """It is to be removed later."""
        self._names.add(name)

    async def try_again(self) -> None:
        """With all that stayed."""
        for name in list(self._names):
            await self.remove(name)
