"""Output that the host does not have yet: bounded, addressed by offset.

Both streams of a process share one offset space, in the order in which they were read. Bytes stay until the host
acknowledges them; while the journal is full the owner must not read on, so that the writing process blocks as on a
pipe that nobody empties.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

CAPACITY = 1 << 20
# As much as is read and sent at one time: each piece costs far more than its bytes do, above all under emulation. With
# what stands around it, it must fit into a message (wire.MAX_PAYLOAD).
MAX_CHUNK = 192 * 1024
# What a piece costs beyond its bytes: a process that writes byte by byte must not grow the agent.
_OVERHEAD = 256


class Piece(NamedTuple):
    """Output as read at one time from one stream."""

    offset: int
    stream: int
    data: bytes
    time_ns: int


class Journal:
    """See the module's docstring. `start` is the first offset kept, `end` the one after the last."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._pieces: deque[Piece] = deque()
        self._cost = 0
        self._unsent: deque[Piece] = deque()
        self.start = 0
        self.end = 0

    @property
    def full(self) -> bool:
        """Whether the owner has to stop reading."""
        return self._cost >= self._capacity

    @property
    def drained(self) -> bool:
        """Whether everything was taken for sending."""
        return not self._unsent

    def append(self, stream: int, data: bytes, time_ns: int) -> None:
        """Adds output that was just read."""
        piece = Piece(self.end, stream, data, time_ns)
        self.end += len(data)
        self._cost += len(data) + _OVERHEAD
        self._pieces.append(piece)
        self._unsent.append(piece)

    def seek(self, offset: int) -> bool:
        """Makes `take` begin at the offset; False when it is not kept."""
        if not self.start <= offset <= self.end:
            return False
        self._unsent = deque(_from(piece, offset) for piece in self._pieces if piece.offset + len(piece.data) > offset)
        return True

    def take(self) -> Piece | None:
        """The next piece to send, None when all is sent."""
        return self._unsent.popleft() if self._unsent else None

    def acknowledge(self, offset: int) -> bool:
        """Forgets all below the offset; False when it is beyond the end."""
        if offset > self.end:
            return False
        while self._pieces and self._pieces[0].offset + len(self._pieces[0].data) <= offset:
            piece = self._pieces.popleft()
            self._cost -= len(piece.data) + _OVERHEAD
        self.start = max(self.start, offset)
        return True


def _from(piece: Piece, offset: int) -> Piece:
    """The part of a piece that is not below the offset."""
    skip = max(0, offset - piece.offset)
    return piece._replace(offset=piece.offset + skip, data=piece.data[skip:]) if skip else piece
