"""The secrets by which a vMotion's destination proves that it carries on a port: who waits for whom.

The source host makes up a sequence, we add a secret, the destination presents both as one opaque cookie. Other
concentrators make secrets of four bytes, the only length that hosts are known to take, so guesses are counted: a cookie
is void after MAX_GUESSES wrong ones, far fewer than would find it.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

SECRET_BYTES: Final = 4
MAX_GUESSES: Final = 1000

_T = TypeVar("_T")


@dataclass
class _Expected(Generic[_T]):
    port: _T
    guesses: int = 0


class Migrations(Generic[_T]):
    """Ports (of whatever kind) by the cookies their destinations will present."""

    def __init__(self) -> None:
        # By digest: how long a look-up takes tells nothing about a cookie.
        self._expected: dict[bytes, _Expected[_T]] = {}

    def begin(self, sequence: bytes, port: _T) -> bytes:
        """A new cookie for `port`: the sequence and a secret."""
        while True:
            cookie = sequence + secrets.token_bytes(SECRET_BYTES)
            digest = _digest(cookie)
            if digest not in self._expected:
                self._expected[digest] = _Expected(port)
                return cookie

    def find(self, cookie: bytes) -> _T | None:
        """Whose cookie this is; None counts as a guess at all of them."""
        expected = self._expected.get(_digest(cookie))
        if expected is not None:
            return expected.port
        for digest, other in list(self._expected.items()):
            other.guesses += 1
            if other.guesses >= MAX_GUESSES:
                del self._expected[digest]
        return None

    def end(self, cookie: bytes) -> None:
        """The cookie is void. No effect when it is already."""
        self._expected.pop(_digest(cookie), None)


def _digest(cookie: bytes) -> bytes:
    return hashlib.sha256(cookie).digest()
