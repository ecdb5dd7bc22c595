"""Clones that wait: which shapes they are of, and how many.

The pool follows what is asked for: its places are shared out by the shapes of the last starts.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

from portlayer.drivers.base import Clone, Shape

# So many starts decide about the shares.
_MEMORY_OF_STARTS = 16


@dataclass(frozen=True)
class Waiting:
    """A clone in the pool, and what it takes of the host's memory."""

    clone: Clone
    private_bytes: int


class Pool:
    """At most `size` clones that take at most `memory_bytes`; 0 for none."""

    def __init__(self, size: int, memory_bytes: int, default: Shape) -> None:
        self._size = size
        self._memory_bytes = memory_bytes
        self._waiting: dict[Shape, deque[Waiting]] = {}
        # What the last clone of a shape took: the next one is not made only to find that it does not fit.
        self._took: dict[Shape, int] = {}
        self._starts: deque[Shape] = deque([default] * _MEMORY_OF_STARTS, _MEMORY_OF_STARTS)

    def note_start(self, shape: Shape) -> None:
        self._starts.append(shape)

    def take(self, shape: Shape) -> Clone | None:
        """The one that has waited longest."""
        waiting = self._waiting.get(shape)
        return waiting.popleft().clone if waiting else None

    def add(self, waiting: Waiting) -> bool:
        """False when its memory does not fit any more; it is the caller's then."""
        self._took[waiting.clone.shape] = waiting.private_bytes
        if not self._fits(waiting.private_bytes):
            return False
        self._waiting.setdefault(waiting.clone.shape, deque()).append(waiting)
        return True

    def drop(self, clone: Clone) -> None:
        """It went away. No effect when it does not wait here."""
        for waiting in self._waiting.values():
            for one in [one for one in waiting if one.clone is clone]:
                waiting.remove(one)

    def count(self, shape: Shape) -> int:
        return len(self._waiting.get(shape, ()))

    def wanting(self, shapes: set[Shape]) -> Shape | None:
        """The shape, of those that can be cloned, that lacks most of its share; None when none does, or has room."""
        lacking = {
            shape: share - self.count(shape)
            for shape, share in self._shares().items()
            if shape in shapes and self._fits(self._took.get(shape, 0))
        }
        most = max(lacking, key=lambda shape: lacking[shape], default=None)
        return most if most is not None and lacking[most] > 0 else None

    def take_surplus(self) -> Clone | None:
        """One that exceeds its shape's share."""
        shares = self._shares()
        for shape, waiting in self._waiting.items():
            if len(waiting) > shares.get(shape, 0):
                return waiting.popleft().clone
        return None

    def take_all(self) -> list[Clone]:
        clones = [one.clone for waiting in self._waiting.values() for one in waiting]
        self._waiting.clear()
        return clones

    @property
    def private_bytes(self) -> int:
        return sum(one.private_bytes for waiting in self._waiting.values() for one in waiting)

    def _fits(self, more_bytes: int) -> bool:
        return self.private_bytes + more_bytes <= self._memory_bytes

    def _shares(self) -> dict[Shape, int]:
        """Places by shape: in proportion, remainders to the shape that was asked for last."""
        counts = Counter(self._starts)
        shares = {shape: self._size * number // len(self._starts) for shape, number in counts.items()}
        shares[self._starts[-1]] += self._size - sum(shares.values())
        return shares
